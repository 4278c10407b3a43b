"""Arrow tables as parquet, and lookups in them. Wraps the calls that pyarrow-stubs types incompletely or wrongly."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

# pyarrow creates these functions when it is imported; the stubs know them with other signatures.
compute: Any = pyarrow.compute


def encode_table(table: pa.Table) -> bytes:
    """Encode a table as a parquet file, compressed with zstd."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")  # pyright: ignore[reportUnknownMemberType]
    return buffer.getvalue().to_pybytes()


def read_table(path: Path) -> pa.Table:
    """Read a parquet file from a disk or an object store."""
    with path.open("rb") as file:
        return pq.read_table(file)  # pyright: ignore[reportUnknownMemberType]


def keys_of(table: pa.Table) -> list[str]:
    """The keys of a table's rows."""
    keys: list[Any] = table.column("key").to_pylist()
    return keys


def shards_of(table: pa.Table) -> np.ndarray:
    """The shard index of each row."""
    return table.column("shard").to_numpy()


def find_keys(table: pa.Table, other: pa.Table) -> np.ndarray:
    """For each row of ``table``, the first row of ``other`` with the same key; -1 if there is none."""
    return compute.index_in(table["key"], value_set=other["key"].combine_chunks()).fill_null(-1).to_numpy()


def find_rows(table: pa.Table, column: str, value: str) -> pa.Table:
    """The rows with a value in a column."""
    return table.filter(compute.equal(table[column], value))
