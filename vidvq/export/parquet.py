"""Parquet with one row per clip."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidvq.errors import UsageError
from vidvq.export.target import Files, Target, TokenSequence

_ROW_GROUP = 256


def _write(files: Files, sequences: Iterator[TokenSequence], count: int, dtype: np.dtype) -> None:
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


def _read(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    with paths[0].open("rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(_ROW_GROUP, columns=["tokens"]):
            column = batch.column("tokens")
            if not isinstance(column, pa.ListArray):
                raise UsageError(f"its tokens are {column.type}, not lists")
            ids = column.values.to_numpy()
            for start, stop in pairwise(column.offsets.to_pylist()):
                yield ids[start:stop]


PARQUET = Target((".parquet",), _write, _read)
