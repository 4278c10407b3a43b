"""A plan's table, without a corpus."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from vidvq.formats.plan import Plan, create_plan, has_plan, read_plan, refuse_foreign, refuse_other_origin


@pytest.fixture(scope="session")
def plan_table() -> Callable[..., pa.Table]:
    """``plan_table("ab", "cd")``: keys a and b in shard 0, c and d in shard 1."""

    def table(*shards: str | list[str]) -> pa.Table:
        rows = [{"key": key, "shard": index} for index, keys in enumerate(shards) for key in keys]
        return pa.Table.from_pylist(rows, schema=pa.schema([("key", pa.string()), ("shard", pa.int32())]))

    return table


@pytest.fixture
def ensure_plan() -> Callable[..., Plan]:
    """The plan of a directory, made now or on an earlier run, as the jobs do it."""

    def ensure(
        out: Path, stage: str, prefix: str, made_from: dict, build: Callable[[], pa.Table], changed: Iterable[str] = ()
    ) -> Plan:
        if has_plan(out):
            plan = read_plan(out)
        else:
            refuse_foreign(out)
            plan = create_plan(out, stage, prefix, made_from, build())
        refuse_other_origin(out, plan, stage, made_from, changed)
        return plan

    return ensure
