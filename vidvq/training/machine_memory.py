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
    # This rank's file must stay open until the other ranks have opened it.
    barrier()
    return shared


def _open(process: int, descriptor: int, name: str) -> io.FileIO | None:
    """Open the file of a process; None if it is on another machine, where the id may be that of another process."""
    path = Path(f"/proc/{process}/fd/{descriptor}")
    try:
        # The unique name rules out the file of an unrelated process with the same id.
        return io.FileIO(path, "r+") if path.readlink().name == f"memfd:{name} (deleted)" else None
    except OSError:
        return None
