"""Objects through a pipe between two processes of ours, large arrays without a copy of them beside the pipe's own.

Pickled whole, as by multiprocessing, a clip of frames is copied four times and costs more than its colour conversion.
"""

import pickle
import struct
from io import FileIO
from typing import Any

import numpy as np

_COUNTS = struct.Struct("!QQ")


def send(pipe: FileIO, value: Any) -> None:
    """Write an object.

    Raises:
        BrokenPipeError: nobody reads any more.
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
    """Read what :func:`send` wrote.

    Raises:
        EOFError: the other process is gone.
    """
    count, size = _COUNTS.unpack(_exactly(pipe, _COUNTS.size))
    head, *buffers = [_exactly(pipe, length) for length in struct.unpack(f"!{count}Q", _exactly(pipe, size))]
    return pickle.loads(head, buffers=buffers)  # noqa: S301 (of a process that this one started)


def _exactly(pipe: FileIO, size: int) -> memoryview:
    # Of numpy, since a bytearray would be filled with zeros first.
    found = np.empty(size, dtype=np.uint8).data
    at = 0
    while at < size:
        got = pipe.readinto(found[at:])
        if not got:
            raise EOFError
        at += got
    return found
