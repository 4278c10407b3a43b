"""The targets: how the sequences of one token shard are written for each trainer, and read back."""

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidvq.formats.token_shard import TokenInfo
from vidvq.storage import attempt_file, publish_over

_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
_ROW_GROUP = 256


@dataclass(frozen=True)
class Sequence:
    """One clip to write: ``ids`` is flat; ``info`` is what its token shard says of it."""

    key: str
    ids: np.ndarray
    info: TokenInfo


@dataclass(frozen=True)
class Target:
    """One kind of export.

    Attributes:
        suffixes: of the files that one token shard becomes.
        dtype: of the ids, by the size of the vocabulary.
        write: puts the sequences into one open file per suffix.
        read: yields the ids of each clip, given the files' paths.
    """

    suffixes: tuple[str, ...]
    dtype: Callable[[int], Any]
    write: Callable[[list[Any], Iterator[Sequence], np.dtype], None]
    read: Callable[[list[Path], np.dtype], Iterator[np.ndarray]]


def write_part(target: Target, folder: Path, stem: str, sequences: Iterator[Sequence], vocabulary: int) -> list[Path]:
    """Write the files of one token shard; each appears whole or not at all. Returns their paths."""
    paths = [folder / (stem + suffix) for suffix in target.suffixes]
    with ExitStack() as stack:
        opened = [stack.enter_context(attempt_file(path)) for path in paths]
        target.write([file for file, _ in opened], sequences, np.dtype(target.dtype(vocabulary)))
    for (_, attempt), path in zip(opened, paths, strict=True):
        publish_over(attempt, path)
    return paths


def _write_bin(files: list[Any], sequences: Iterator[Sequence], dtype: np.dtype) -> None:
    data, index = files
    starts = [0]
    for sequence in sequences:
        data.write(sequence.ids.astype(dtype).tobytes())
        starts.append(starts[-1] + len(sequence.ids))
    np.save(index, np.array(starts, dtype=np.int64), allow_pickle=False)


def _read_bin(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    with paths[1].open("rb") as file:
        starts = np.load(file, allow_pickle=False)
    with paths[0].open("rb") as file:
        for length in np.diff(starts).tolist():
            yield np.frombuffer(file.read(length * dtype.itemsize), dtype=dtype)


def _write_megatron(files: list[Any], sequences: Iterator[Sequence], dtype: np.dtype) -> None:
    # MMapIndexedDataset: magic, version, dtype code, sequences, documents, lengths, byte offsets, documents' starts.
    data, index = files
    lengths: list[int] = []
    for sequence in sequences:
        data.write(sequence.ids.astype(dtype).tobytes())
        lengths.append(len(sequence.ids))
    pointers = np.cumsum([0, *lengths], dtype=np.int64)[:-1] * dtype.itemsize
    index.write(_MEGATRON_MAGIC + struct.pack("<QB", 1, _MEGATRON_DTYPES[dtype]))
    index.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
    index.write(np.array(lengths, dtype="<i4").tobytes() + pointers.astype("<i8").tobytes())
    index.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def _read_megatron(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    head = len(_MEGATRON_MAGIC) + struct.calcsize("<QB") + struct.calcsize("<QQ")
    index = paths[1].read_bytes()
    count = struct.unpack_from("<Q", index, head - 16)[0]
    lengths = np.frombuffer(index, dtype="<i4", count=count, offset=head)
    with paths[0].open("rb") as file:
        for length in lengths.tolist():
            yield np.frombuffer(file.read(length * dtype.itemsize), dtype=dtype)


def _write_parquet(files: list[Any], sequences: Iterator[Sequence], dtype: np.dtype) -> None:
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("tokens", pa.list_(pa.from_numpy_dtype(dtype))),
            ("grid", pa.list_(pa.int32())),
            ("num_frames", pa.int64()),
            ("fps", pa.float64()),
            ("source", pa.string()),
        ]
    )
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(files[0], schema, compression="zstd") as writer:
        for sequence in sequences:
            clip = sequence.info
            row = {"key": sequence.key, "tokens": sequence.ids.astype(dtype), "grid": list(clip.grid)}
            rows.append(row | {"num_frames": clip.num_frames, "fps": clip.fps, "source": clip.source})
            if len(rows) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _read_parquet(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    with paths[0].open("rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(_ROW_GROUP, columns=["tokens"]):
            for row in batch.column("tokens"):
                yield row.values.to_numpy().astype(dtype)


TARGETS = {
    "megatron": Target(
        (".bin", ".idx"), lambda size: np.uint16 if size <= 1 << 16 else np.int32, _write_megatron, _read_megatron
    ),
    "bin": Target(
        (".bin", ".index.npy"), lambda size: np.uint16 if size <= 1 << 16 else np.uint32, _write_bin, _read_bin
    ),
    "parquet": Target(
        (".parquet",), lambda size: np.uint16 if size <= 1 << 16 else np.uint32, _write_parquet, _read_parquet
    ),
}
