"""Copies of remote files that the processes of one user on this machine share.

The first process that needs a file copies it, the others wait for the copy, and the last one deletes it.

    TMPDIR/vidvq-copies-UID/NAME         the copy
                            NAME.part    the copy while it is made
                            NAME.lock    locked by the process that makes it (exclusive), and by its users (shared)

Locks end with their process. A copy that killed processes left is used again, or deleted by :func:`sweep_copies`.
"""

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_LOCK = ".lock"


@contextmanager
def shared_copy(name: str, make: Callable[[IO[bytes]], None]) -> Iterator[Path | None]:
    """Provide the copy of a file to the block.

    Args:
        name: file name; processes that give the same name must mean the same content.
        make: writes the content, and raises an exception if it cannot.

    Yields:
        The copy. None if the process that was making it failed, or if processes cannot share a folder or lock files
        here; the caller must then make a copy of its own.

    Raises:
        Exception: the exception that ``make`` raised.
    """
    copy = _folder() / name
    with suppress(OSError):
        copy.parent.mkdir(mode=0o700)
    lock = _lock(copy.with_name(name + _LOCK)) if _is_private(copy.parent) else None
    if lock is None:
        yield None
        return
    file, is_exclusive = lock
    try:
        if is_exclusive:
            if not copy.exists():
                _make(copy, make)
            fcntl.flock(file, fcntl.LOCK_SH)
        yield copy if copy.exists() else None
    finally:
        _delete_unused(file, copy)
        os.close(file)


def sweep_copies() -> None:
    """Delete copies that no process uses."""
    folder = _folder()
    for path in list(folder.glob(f"*{_LOCK}")) if _is_private(folder) else []:
        with suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            _delete_unused(file, path.with_name(path.name.removesuffix(_LOCK)))
            os.close(file)


def _folder() -> Path:
    return Path(tempfile.gettempdir(), f"vidvq-copies-{os.getuid()}")


def _is_private(folder: Path) -> bool:
    """Whether a folder is there, and nobody else can replace what is in it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def _lock(path: Path) -> tuple[int, bool] | None:
    """Open and lock the lock file of a copy.

    Returns:
        The descriptor, and whether the lock is exclusive, so that this process must make the copy. None if the copy was
        deleted in the meantime.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        exclusive = _try_exclusive(file)
        if not exclusive:
            # Waits for the process that makes the copy.
            fcntl.flock(file, fcntl.LOCK_SH)
        if os.path.samestat(os.fstat(file), path.stat()):
            return file, exclusive
    except OSError:
        pass
    os.close(file)
    return None


def _try_exclusive(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make(copy: Path, make: Callable[[IO[bytes]], None]) -> None:
    part = copy.with_name(f"{copy.name}.part")
    with part.open("wb") as file:
        make(file)
    part.rename(copy)


def _delete_unused(file: int, copy: Path) -> None:
    """Delete a copy, unless other processes hold its lock too, or have deleted it already."""
    path = copy.with_name(copy.name + _LOCK)
    with suppress(OSError):
        if _try_exclusive(file) and os.path.samestat(os.fstat(file), path.stat()):
            for left in (copy, copy.with_name(f"{copy.name}.part"), path):
                left.unlink(missing_ok=True)
            copy.parent.rmdir()
