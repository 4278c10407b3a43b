"""Arrow tables as parquet, and lookups in them. Wraps the calls that pyarrow-stubs types incompletely or wrongly."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vidvq.errors import UsageError
from vidvq.redact import redact

_MAX_ROWS = 1 << 31
# Compression limits (bytes, ratio): tables of equal rows compress well, decompression bombs even better.
_MIN_UNPACKED = 64 << 20
_MAX_UNPACKED = 1000

# pyarrow creates these functions when it is imported; the stubs know them with other signatures.
compute: Any = pyarrow.compute


def encode_table(table: pa.Table) -> bytes:
    """Encode a table as a parquet file, compressed with zstd."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")  # pyright: ignore[reportUnknownMemberType]
    return buffer.getvalue().to_pybytes()


def holds_secrets(table: pa.Table) -> bool:
    """Whether a URL in the column ``uri`` holds credentials or a signature."""
    if "uri" not in table.column_names:
        return False
    uris = table.column("uri")
    urls = uris.filter(compute.match_substring(uris, "://"))
    return any(url and redact(url) != url for chunk in urls.chunks for url in chunk.to_pylist())


def parse_table(data: bytes, where: Path) -> pa.Table:
    """Parse untrusted parquet.

    Args:
        where: file of the data, for error messages.

    Raises:
        UsageError: the data is not parquet, or decompresses to more than :data:`_MAX_UNPACKED` times its size.
    """
    try:
        about = pq.ParquetFile(pa.BufferReader(data))
        groups = (about.metadata.row_group(index) for index in range(about.metadata.num_row_groups))
        unpacked = sum(group.total_byte_size for group in groups)
        if about.metadata.num_rows > _MAX_ROWS or not 0 <= unpacked <= max(_MIN_UNPACKED, _MAX_UNPACKED * len(data)):
            raise UsageError(f"{where} would decompress from {len(data)} to {unpacked} bytes; vidvq did not write it")
        table: pa.Table = about.read()  # pyright: ignore[reportUnknownMemberType]
        # Otherwise text that is not UTF-8 is an error where it is used.
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"{where} is not readable parquet ({line[:200]}); restore it from a copy") from error


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
