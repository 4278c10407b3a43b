"""A file in memory that all processes of a training job on one machine share."""

import io
import os
from pathlib import Path
from uuid import uuid4

from torch import distributed

from vidvq.data.clip_cache import create_memory_file
from vidvq.training.distributed import barrier, has_peers


def machine_memory_file() -> io.FileIO:
    """Create an empty file in memory, or open that of the first rank on this machine. Collective: call on every rank.

    The file has no path: nothing is left behind when the job is killed. Ranks in different containers do not share it.
    """
    name = f"vidvq-{uuid4().hex}"
    file = create_memory_file(name)
    if not has_peers():
        return file
    offers: list[tuple[int, int, str]] = [(0, 0, "")] * distributed.get_world_size()
    distributed.all_gather_object(offers, (os.getpid(), file.fileno(), name))
    shared = next(filter(None, (_open(*offer) for offer in offers)), file)
    # The other ranks have opened this rank's file, too, before it is closed.
    barrier()
    return shared


def _open(process: int, descriptor: int, name: str) -> io.FileIO | None:
    """Open the file of a process; None if it is on another machine, where the id may be that of another process."""
    path = Path(f"/proc/{process}/fd/{descriptor}")
    try:
        # The name is unique, which makes it safe to open what is behind a number.
        return io.FileIO(path, "r+") if path.readlink().name == f"memfd:{name} (deleted)" else None
    except OSError:
        return None
