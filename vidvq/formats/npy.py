"""Npy files from untrusted bytes. The size that a header says must be that of the file."""

import io
import math

import numpy as np

from vidvq.errors import UsageError


def read_npy(data: bytes) -> np.ndarray:
    """Parse an npy file of numbers; the array is read-only.

    Raises:
        UsageError: it is none, holds objects, or its header says another size than it has.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(file)
    except (ValueError, KeyError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError) as error:
        raise UsageError(f"its npy header is not readable ({' '.join(str(error).split())[:120]})") from error
    left = len(data) - file.tell()
    if dtype.hasobject:
        raise UsageError("it holds Python objects, which are never read (allow_pickle=False)")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != left or not dtype.itemsize:
        raise UsageError(f"its npy header says {dtype} {shape}, {left} bytes follow")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")
