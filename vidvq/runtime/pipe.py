"""Sends objects through a pipe between a process and its child; arrays travel out of band, without extra copies.

In-band pickling, as multiprocessing does it, copies a clip of frames four times and costs more than colour conversion.
Large arrays travel through shared memory where the system has it (:mod:`vidvq.runtime.shared`).
"""

import pickle
import struct
from io import FileIO
from typing import Any

import numpy as np

from vidvq.runtime.shared import BlockReader, BlockRef, BlockWriter

_COUNTS = struct.Struct("!QQ")


def send(pipe: FileIO, value: Any, blocks: BlockWriter | None = None) -> None:
    """Write an object to a pipe.

    Args:
        blocks: shared memory for its large arrays; None to write them to the pipe.

    Raises:
        BrokenPipeError: the reader has closed the pipe.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    refs = [blocks.put(buffer) if blocks else None for buffer in buffers]
    if any(refs):
        head = pickle.dumps((head, refs), protocol=5)
    parts = [head, *(buffer.raw() for buffer, ref in zip(buffers, refs, strict=True) if ref is None)]
    sizes = struct.pack(f"!{len(parts)}Q", *(len(part) for part in parts))
    # The highest bit of the number of parts marks a head with references.
    count = len(parts) | (1 << 63 if any(refs) else 0)
    for part in (_COUNTS.pack(count, len(sizes)), sizes, *parts):
        left = memoryview(part)
        while left:
            left = left[pipe.write(left) :]


def receive(pipe: FileIO, blocks: BlockReader | None = None) -> Any:
    """Read an object that :func:`send` wrote.

    Args:
        blocks: the reading end of the shared memory that the sender uses.

    Raises:
        EOFError: the writer has closed the pipe.
    """
    count, size = _COUNTS.unpack(_read_exactly(pipe, _COUNTS.size))
    shared, count = bool(count >> 63), count & ~(1 << 63)
    head, *parts = [_read_exactly(pipe, length) for length in struct.unpack(f"!{count}Q", _read_exactly(pipe, size))]
    # The sender is this process's parent or child.
    if not shared:
        return pickle.loads(head, buffers=parts)  # noqa: S301
    assert blocks is not None
    inner, refs = pickle.loads(head)  # noqa: S301
    left = iter(parts)
    buffers = [blocks.get(ref) if isinstance(ref, BlockRef) else next(left) for ref in refs]
    return pickle.loads(inner, buffers=buffers)  # noqa: S301


def _read_exactly(pipe: FileIO, size: int) -> memoryview:
    # np.empty, because a bytearray would be zeroed first.
    buffer = np.empty(size, dtype=np.uint8).data
    filled = 0
    while filled < size:
        count = pipe.readinto(buffer[filled:])
        if not count:
            raise EOFError
        filled += count
    return buffer
