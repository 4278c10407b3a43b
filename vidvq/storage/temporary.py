"""Temporary files outside of the output: named after their owner, and deleted by the next job once it is dead."""

import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vidvq.storage.shared_copy import sweep_copies

PREFIX = "vidvq-"
_OWNED = re.compile(r"vidvq-.+\.tmp\.(?P<host>.+)-(?P<pid>\d+)-\w{8}")


def owner() -> str:
    """Name of this process in the names of temporary files: ``HOST-PID``."""
    return f"{_host()}-{os.getpid()}"


def temporary_prefix(name: str) -> str:
    """Prefix for the ``tempfile`` module, of files and folders that :func:`sweep` may delete after this process."""
    return f"{PREFIX}{name}.tmp.{owner()}-"


@contextmanager
def temporary_copy() -> Iterator[IO[bytes]]:
    """Open a named temporary file for a copy; it is deleted on exit."""
    with tempfile.NamedTemporaryFile(prefix=temporary_prefix("copy")) as copy:
        # A process in another container may share this folder and not see this process.
        with suppress(OSError):
            fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield copy


def sweep() -> None:
    """Delete the temporary files and folders of dead processes of this machine, and copies that no process uses."""
    sweep_copies()
    for entry in Path(tempfile.gettempdir()).glob(f"{PREFIX}*.tmp.*"):
        found = _OWNED.fullmatch(entry.name)
        if found and found["host"] == _host() and not _is_alive(int(found["pid"])):
            # Another job may delete it at the same time, and it may belong to another user.
            with suppress(OSError):
                _delete(entry)


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
        return
    descriptor = os.open(entry, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        entry.unlink()
    finally:
        os.close(descriptor)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    # A dead process keeps its number until its parent, or PID 1 of a container, waits for it.
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def _host() -> str:
    return socket.gethostname().split(".")[0]
