"""Lossless packing of codes: the minimum number of bits per code for its codebook, then zstd."""

import math
from collections.abc import Callable

import numpy as np

from vidvq.codebook import Codebook
from vidvq.errors import UsageError

CodebookOf = Callable[[int], Codebook]

_LEVEL = 19
# Codes of a sample (2 GiB of uint16). Without a limit, a few kB of zstd would unpack to all memory.
_MAX_CODES = 1 << 30
_CHUNK = 1 << 20


def pack_codes(codes: np.ndarray, book_of: CodebookOf) -> bytes:
    """Pack local codes, each in ceil(log2(size)) bits, most significant bit first.

    Latent frames are concatenated without padding; the last byte is padded with zeros.

    Args:
        codes: codes ``lt lh lw``, from 0.
    """
    import zstandard

    parts = [_to_bits(group.ravel().astype(np.uint32), _width(book_of(t).size)) for t, group in enumerate(codes)]
    packed = np.packbits(np.concatenate(parts)).tobytes()
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(packed)


def unpack_codes(
    data: bytes, grid: tuple[int, ...], book_of: CodebookOf, dtype: type[np.unsignedinteger]
) -> np.ndarray:
    """Unpack codes; the inverse of :func:`pack_codes`.

    Args:
        data: packed codes.
        grid: shape ``lt lh lw``, each 1 or more.
        book_of: the codebook of a latent frame, the same of all but the first.

    Raises:
        UsageError: the data is damaged, or does not fit the grid.
    """
    import zstandard

    if math.prod(grid) > _MAX_CODES:
        raise UsageError(f"its grid {grid} has {math.prod(grid)} codes; at most {_MAX_CODES} can be packed")
    area = grid[1] * grid[2]
    # A codebook for the first latent frame, and one for all later ones.
    runs = [(1, _width(book_of(0).size)), (grid[0] - 1, _width(book_of(1).size))]
    size = -(-area * sum(times * width for times, width in runs) // 8)
    try:
        # Decompress no more than the grid needs, whatever size the frame declares.
        if zstandard.frame_content_size(data) != size:
            raise UsageError(f"its packed codes are not the {size} bytes of a grid {grid}")
        packed = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise UsageError(f"its packed codes are damaged ({error})") from error
    # Unpack runs of one width at a time. The padding is for codes in the last bytes, which are read as wider words.
    data_bytes = np.frombuffer(packed + bytes(4), dtype=np.uint8)
    codes, bit, done = np.empty(math.prod(grid), dtype=dtype), 0, 0
    for times, width in runs:
        end = done + times * area
        while done < end:
            # The words of a code take many times the memory of the code.
            count = min(_CHUNK, end - done)
            codes[done : done + count] = _from_bits(data_bytes, bit, count, width)
            bit, done = bit + count * width, done + count
    return codes.reshape(grid)


def _width(size: int) -> int:
    return max((size - 1).bit_length(), 1)


def _to_bits(values: np.ndarray, width: int) -> np.ndarray:
    return (values[:, None] >> np.arange(width - 1, -1, -1, dtype=np.uint32) & 1).astype(np.uint8).ravel()


def _from_bits(data: np.ndarray, first_bit: int, count: int, width: int) -> np.ndarray:
    byte, bit = np.divmod(first_bit + width * np.arange(count, dtype=np.int64), 8)
    # Number of bytes that contain a code at any bit offset.
    span = (width + 14) // 8
    word = data[byte].astype(np.uint64)
    for following in range(1, span):
        word = word << np.uint64(8) | data[byte + following]
    return word >> (8 * span - width - bit).astype(np.uint64) & np.uint64((1 << width) - 1)
