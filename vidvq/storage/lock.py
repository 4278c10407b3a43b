"""An exclusive lock of a directory, released by the kernel when its owner ends."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidvq.errors import UsageError
from vidvq.storage.files import make_folder

NAME = "lock.json"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextmanager
def exclusive_lock(folder: Path, remedy: str) -> Iterator[None]:
    """Hold the lock ``lock.json`` of a directory, which contains the host and process id of its owner.

    A POSIX lock: child processes do not inherit it, and network file systems share it between hosts. On a file system
    without locks it has no effect.

    Args:
        folder: the directory; created if it does not exist.
        remedy: remedy if another process holds the lock, for the error message.

    Raises:
        UsageError: another process holds the lock.
    """
    make_folder(folder)
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UsageError(f"{folder} is in use by {_owner(descriptor)}; {remedy}") from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    """Describe the owner, if known."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:80]}"
    except (ValueError, KeyError, TypeError):
        return "another process"
