"""Shared memory in which a child process hands arrays to its parent: one copy, by the child, instead of two and a pipe.

The memory is an anonymous file that both processes map. It has no name, so nothing is left behind when they are killed.

    page 0        one byte per block: 1 while the block is in use
    from page 1   blocks, each of one size, created as they are needed

The child takes a block that is not in use and copies an array into it. The parent reads it in place, and marks the
block as unused when the last array that refers to it is gone.
"""

import mmap
import os
import weakref
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import Any

import numpy as np

PAGE = mmap.ALLOCATIONGRANULARITY
# Smaller buffers are sent in the message.
MIN_BYTES = 1 << 16
# Beyond this, arrays are sent in the message: a consumer that keeps every array would otherwise fill the memory.
MAX_BYTES = 1 << 30
_MAX_BLOCKS = PAGE


def supported() -> bool:
    """Whether this system has anonymous memory files (Linux)."""
    return hasattr(os, "memfd_create")


def create_file() -> int:
    """Create the memory file, in the parent; returns its descriptor, which the child inherits."""
    file = os.memfd_create("vidvq")
    os.ftruncate(file, PAGE)
    return file


@dataclass(frozen=True)
class BlockRef:
    """A buffer in shared memory, sent in its place.

    Attributes:
        offset: offset of the block in the file (bytes).
        capacity: size of the block (bytes).
        nbytes: size of the buffer (bytes).
    """

    index: int
    offset: int
    capacity: int
    nbytes: int


@dataclass(frozen=True)
class _Block:
    offset: int
    capacity: int
    memory: mmap.mmap


class BlockWriter:
    """The child's side.

    Args:
        file: descriptor of the memory file.
    """

    def __init__(self, file: int) -> None:
        self._file, self._size = file, PAGE
        self._in_use = mmap.mmap(file, PAGE)
        self._blocks: list[_Block] = []

    def put(self, buffer: PickleBuffer) -> BlockRef | None:
        """Copy a buffer into a block; returns None if it is too small, or if the memory is full."""
        raw = buffer.raw()
        if raw.nbytes < MIN_BYTES:
            return None
        index = self._find(raw.nbytes)
        if index is None:
            return None
        block = self._blocks[index]
        self._in_use[index] = 1
        # NumPy's copy is the fastest of this size.
        np.frombuffer(block.memory, np.uint8, raw.nbytes)[:] = np.frombuffer(raw, np.uint8)
        return BlockRef(index, block.offset, block.capacity, raw.nbytes)

    def _find(self, nbytes: int) -> int | None:
        fitting = [
            index for index, block in enumerate(self._blocks) if block.capacity >= nbytes and not self._in_use[index]
        ]
        if fitting:
            return min(fitting, key=lambda index: self._blocks[index].capacity)
        capacity = -(-nbytes // PAGE) * PAGE
        if len(self._blocks) == _MAX_BLOCKS or self._size + capacity > MAX_BYTES:
            return None
        os.ftruncate(self._file, self._size + capacity)
        self._blocks.append(_Block(self._size, capacity, mmap.mmap(self._file, capacity, offset=self._size)))
        self._size += capacity
        return len(self._blocks) - 1


class BlockReader:
    """The parent's side.

    Args:
        file: descriptor of the memory file.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._in_use = mmap.mmap(file, PAGE)
        self._mapped: dict[int, mmap.mmap] = {}

    def get(self, ref: BlockRef) -> Any:
        """Return the buffer of a reference. Its block is free again once nothing refers to it."""
        memory = self._mapped.get(ref.index)
        if memory is None:
            memory = self._mapped[ref.index] = mmap.mmap(self._file, ref.capacity, offset=ref.offset)
        view = np.frombuffer(memory, np.uint8, ref.nbytes)
        weakref.finalize(view, _release, self._in_use, ref.index)
        return view


def _release(in_use: mmap.mmap, index: int) -> None:
    in_use[index] = 0
