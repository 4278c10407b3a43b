"""Parsing of npy files from untrusted sources: the size in the header must match the data."""

import io
import math

import numpy as np

from vidvq.errors import UsageError


def read_npy(data: bytes) -> np.ndarray:
    """Parse an npy file of numbers to a read-only array.

    Raises:
        UsageError: the data is not an npy file, has Python objects, or does not match the size in its header.
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
    # Python takes True for an integer, NumPy does not.
    whole = all(not isinstance(length, bool) and length >= 0 for length in shape)
    if not whole or math.prod(shape) * dtype.itemsize != left or not dtype.itemsize:
        raise UsageError(f"its npy header has {dtype} {shape}, but {left} bytes follow")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")
