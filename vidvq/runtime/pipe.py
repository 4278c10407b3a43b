"""Sends objects through a pipe between a process and its child; arrays travel out of band, without extra copies.

In-band pickling, as multiprocessing does it, copies a clip of frames four times and costs more than colour conversion.
"""

import pickle
import struct
from io import FileIO
from typing import Any

import numpy as np

_COUNTS = struct.Struct("!QQ")


def send(pipe: FileIO, value: Any) -> None:
    """Write an object to a pipe.

    Raises:
        BrokenPipeError: the reader has closed the pipe.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [head, *(buffer.raw() for buffer in buffers)]
    sizes = struct.pack(f"!{len(parts)}Q", *(len(part) for part in parts))
    for part in (_COUNTS.pack(len(parts), len(sizes)), sizes, *parts):
        left = memoryview(part)
        while left:
            left = left[pipe.write(left) :]


def receive(pipe: FileIO) -> Any:
    """Read an object that :func:`send` wrote.

    Raises:
        EOFError: the writer has closed the pipe.
    """
    count, size = _COUNTS.unpack(_read_exactly(pipe, _COUNTS.size))
    head, *buffers = [_read_exactly(pipe, length) for length in struct.unpack(f"!{count}Q", _read_exactly(pipe, size))]
    return pickle.loads(head, buffers=buffers)  # noqa: S301 (the sender is this process's parent or child)


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
