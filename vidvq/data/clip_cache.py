"""Decoded clips in memory, shared by all data workers of all training processes of a machine."""

import fcntl
import io
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np

from vidvq.errors import UsageError

# Offset plus one (bytes; 0 if the clip is not cached), frames (0 until a worker reserves space), height and width.
_FIELDS = 4
_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def create_memory_file(name: str) -> io.FileIO:
    """Create an anonymous file in memory, which exists until no process has it open or mapped.

    Args:
        name: its name in ``/proc``.
    """
    if hasattr(os, "memfd_create"):
        return io.FileIO(os.memfd_create(name), "r+")
    with tempfile.TemporaryFile() as file:
        return io.FileIO(os.dup(file.fileno()), "r+")


class ClipCache:
    """Keeps the first clips that fit, for the whole run.

    Each clip is drawn once per epoch, in a new order, so replacing clips would only lose hits. Forked workers inherit
    the cache. A process that is killed while it writes leaves its clip unavailable, and its lock free.

    Layout of the file:

        frames    capacity bytes
        table     4 integers per clip, then the number of bytes in use

    Args:
        capacity: size of all frames that are kept (bytes, 1 or more).
        file: file in memory, empty or that of another cache with the same clips and capacity.

    Raises:
        UsageError: ``capacity`` exceeds the memory of the machine.
    """

    def __init__(self, num_clips: int, capacity: int, file: io.FileIO) -> None:
        if capacity > _MEMORY:
            raise UsageError(
                f"data.cache_mib={capacity >> 20} must fit in the memory of this machine ({_MEMORY >> 20} MiB)"
            )
        table = -(-capacity // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        size = table + 8 * _FIELDS * (num_clips + 1)
        # The system allocates memory only where it is written to.
        os.ftruncate(file.fileno(), size)
        self._memory = mmap.mmap(file.fileno(), size)
        self._table = np.frombuffer(self._memory, np.int64, offset=table).reshape(-1, _FIELDS)
        self._capacity = capacity
        # In the last row: bytes in use.
        self._used = self._table[-1]
        self._file, self._threads = file, Lock()

    def get(self, clip: int) -> np.ndarray | None:
        """Return the frames ``t h w c`` uint8 of a clip, read-only; None if it is not cached."""
        start, *shape = (int(value) for value in self._table[clip])
        if not start:
            return None
        shape = (*shape, 3)
        frames = np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), start - 1).reshape(shape)
        frames.flags.writeable = False
        return frames

    def put(self, clip: int, frames: np.ndarray) -> None:
        """Keep the frames ``t h w c`` uint8 of a clip, if they fit."""
        with self._locked():
            start = int(self._used[0])
            if self._table[clip, 1] or start + frames.nbytes > self._capacity:
                return
            self._used[0] += frames.nbytes
            self._table[clip, 1:] = frames.shape[:3]
        np.frombuffer(self._memory, np.uint8, frames.nbytes, start)[:] = frames.reshape(-1)
        with self._locked():
            # Readers take no lock, so the offset is written last, after the shape and the frames.
            self._table[clip, 0] = start + 1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A POSIX lock is released when its process ends, but does not exclude the threads of that process.
        with self._threads:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)
