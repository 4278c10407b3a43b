"""A plan's table, without a corpus."""

from collections.abc import Callable

import pyarrow as pa
import pytest


@pytest.fixture(scope="session")
def plan_table() -> Callable[..., pa.Table]:
    """``plan_table("ab", "cd")``: keys a and b in shard 0, c and d in shard 1."""

    def table(*shards: str | list[str]) -> pa.Table:
        rows = [{"key": key, "shard": index} for index, keys in enumerate(shards) for key in keys]
        return pa.Table.from_pylist(rows, schema=pa.schema([("key", pa.string()), ("shard", pa.int32())]))

    return table
