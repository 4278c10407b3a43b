"""Decoded clips in memory that all data workers of a training process share; they inherit it when they are forked."""

import mmap
import multiprocessing

import numpy as np

from vidvq.errors import UsageError

# Offset plus one (bytes; 0 for a clip that is not here), frames, height and width.
_FIELDS = 4


class ClipCache:
    """Keeps the first clips that fit, for the whole run.

    Clips are drawn once per epoch, in a new order each time: replacing clips would lose hits.

    Args:
        num_clips: number of clips of the data set.
        capacity: size of all frames that are kept (bytes, 1 or more).

    Raises:
        UsageError: the system has no such memory.
    """

    def __init__(self, num_clips: int, capacity: int) -> None:
        try:
            # Memory is taken only as it is written to.
            self._frames = mmap.mmap(-1, capacity)
            self._table = np.frombuffer(mmap.mmap(-1, 8 * _FIELDS * (num_clips + 1)), np.int64).reshape(-1, _FIELDS)
        except OSError as error:
            raise UsageError(
                f"data.cache_mib x data.workers={capacity >> 20} MiB must fit in memory: {error}; lower data.cache_mib"
            ) from error
        self._capacity = capacity
        # In the last row: bytes in use.
        self._used = self._table[-1]
        self._lock = multiprocessing.get_context("fork").Lock()

    def get(self, clip: int) -> np.ndarray | None:
        """Return the frames ``t h w c`` uint8 of a clip, read-only; None if it is not here."""
        start, *shape = (int(value) for value in self._table[clip])
        if not start:
            return None
        shape = (*shape, 3)
        frames = np.frombuffer(self._frames, np.uint8, int(np.prod(shape)), start - 1).reshape(shape)
        frames.flags.writeable = False
        return frames

    def put(self, clip: int, frames: np.ndarray) -> None:
        """Keep the frames ``t h w c`` uint8 of a clip, if they fit."""
        with self._lock:
            start = int(self._used[0])
            if self._table[clip, 0] or start + frames.nbytes > self._capacity:
                return
            self._used[0] += frames.nbytes
        np.frombuffer(self._frames, np.uint8, frames.nbytes, start)[:] = frames.reshape(-1)
        with self._lock:
            # Readers take no lock: the offset comes last, after the frames and their shape.
            self._table[clip, 1:] = frames.shape[:3]
            self._table[clip, 0] = start + 1
