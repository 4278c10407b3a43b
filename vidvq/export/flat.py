"""Ids in one file and clip offsets in another: ``bin`` and Megatron-LM's indexed dataset."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from vidvq.errors import UsageError
from vidvq.export.target import Files, Target, TokenSequence
from vidvq.formats.npy import read_npy

_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}


def _write_bin(files: Files, sequences: Iterator[TokenSequence], count: int, dtype: np.dtype) -> None:
    data, index = files
    starts = np.cumsum([0, *_write_ids(data, sequences, dtype)], dtype=np.int64)
    np.save(index, starts, allow_pickle=False)


def _read_bin(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    starts = read_npy(paths[1].read_bytes())
    if starts.dtype != np.int64 or starts.ndim != 1 or not len(starts) or starts[0]:
        raise UsageError("its index is not an int64 array that starts at 0")
    yield from read_arrays(paths[0], np.diff(starts), dtype)


def _write_megatron(files: Files, sequences: Iterator[TokenSequence], count: int, dtype: np.dtype) -> None:
    # MMapIndexedDataset: magic, version, dtype code, number of sequences and documents, lengths, byte offsets,
    # first sequence of each document.
    data, index = files
    lengths = _write_ids(data, sequences, dtype)
    index.write(_megatron_index(np.array(lengths, dtype="<i4"), dtype))


def _write_ids(data: IO[bytes], sequences: Iterator[TokenSequence], dtype: np.dtype) -> list[int]:
    """Write the ids of sequences one after another, and return the lengths of the sequences."""
    return [data.write(sequence.ids.astype(dtype).tobytes()) // dtype.itemsize for sequence in sequences]


def _megatron_index(lengths: np.ndarray, dtype: np.dtype) -> bytes:
    pointers = np.cumsum([0, *lengths.tolist()], dtype=np.int64)[:-1] * dtype.itemsize
    head = _MEGATRON_MAGIC + struct.pack("<QB", 1, _MEGATRON_DTYPES[dtype])
    head += struct.pack("<QQ", len(lengths), len(lengths) + 1)
    starts = np.arange(len(lengths) + 1, dtype="<i8")
    return head + lengths.astype("<i4").tobytes() + pointers.astype("<i8").tobytes() + starts.tobytes()


def _read_megatron(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    head = len(_MEGATRON_MAGIC) + struct.calcsize("<QB") + struct.calcsize("<QQ")
    index = paths[1].read_bytes()
    count = struct.unpack_from("<Q", index, head - 16)[0]
    if len(index) != head + count * 12 + (count + 1) * 8:
        raise UsageError(f"its index has {len(index)} bytes, not those of {count} sequences")
    lengths = np.frombuffer(index, dtype="<i4", count=count, offset=head)
    expected = _megatron_index(lengths, dtype)
    if index != expected:
        raise UsageError("its index is not that of its lengths")
    yield from read_arrays(paths[0], lengths, dtype)


def read_arrays(path: Path, lengths: np.ndarray, dtype: np.dtype, start: int = 0) -> Iterator[np.ndarray]:
    """Yield consecutive arrays of the given lengths (ids), from byte ``start`` to the end of the file.

    Raises:
        UsageError: the file has more or fewer bytes.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(start)
        counts: list[int] = lengths.tolist()
        # A sum of NumPy may overflow.
        if min(counts, default=0) < 0 or start + sum(counts) * dtype.itemsize != size:
            raise UsageError(f"its index does not match its {size} bytes")
        for count in counts:
            yield np.frombuffer(file.read(count * dtype.itemsize), dtype=dtype)


BIN = Target((".bin", ".index.npy"), _write_bin, _read_bin)
MEGATRON = Target((".bin", ".idx"), _write_megatron, _read_megatron, wide=np.int32)
