"""The plan: every item a job will touch and the shard it goes into, written once before any work.

``plan.parquet`` has a row per item; ``plan.json`` says what it was made from. Its hash is the ``plan_id`` that every
commit record carries. What a shard holds depends on the plan alone: not on workers, order or time.

A finished plan changes by generations, each an append-only pair of files behind the one before (``plan-0001.json``,
``plan-0001-DIGEST.parquet``). A generation's rows are new items, in new shards or behind those of an old one, or take
the place of the rows with their keys. A shard that a generation touches gets a new name (``clips-000012-r1.tar``), so
nothing committed is ever written over, and the old one goes once the new one is committed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vidvq.config import validate
from vidvq.errors import JobStopped, UsageError
from vidvq.storage import (
    canonical_json,
    create_once,
    differences,
    pretty_json,
    read_json,
    remove_attempts,
    sha256_bytes,
    sha256_file,
    write_atomic,
)

FORMAT = "vidvq.plan/2"
_SHOWN_DIFFERENCES = 8
_ROWS_AT_A_TIME = 4096
# pyarrow makes these functions when it is imported, where no type checker sees them.
pc: Any = pyarrow.compute
_OURS = ("plan.parquet", "plan.json.tmp.", "plan.parquet.tmp.", "planning")


@dataclass(frozen=True)
class _Header:
    """The fields of ``plan.json``, beside its format."""

    stage: str
    made_from: dict[str, Any]
    items: int
    shards: int
    first_shard: int
    prefix: str
    table: str
    table_sha256: str
    parent: str | None


@dataclass(frozen=True)
class Plan:
    """A plan as it stands on disk.

    Attributes:
        headers: the content of ``plan.json`` and of each later generation's: ``stage``, ``made_from`` (whatever the
            content of the shards depends on: inputs, policy, tokenizer), ``items``, ``shards`` (both with those of the
            generations before), ``first_shard`` (the first new one), ``prefix``, ``table``, ``table_sha256``,
            ``parent`` (the plan_id before).
        table: the rows that hold now; columns ``key: string`` and ``shard: int32`` and the stage's own, in the order
            of their shards; and ``generation: int32``, which wrote the row.
        touched: shard index -> the later generations that gave it new rows, ascending.
    """

    headers: tuple[dict[str, Any], ...]
    table: pa.Table
    touched: dict[int, tuple[int, ...]]

    @property
    def header(self) -> dict[str, Any]:
        """The newest generation's header: its ``made_from``, ``items`` and ``shards`` are those of the whole plan."""
        return self.headers[-1]

    @property
    def plan_id(self) -> str:
        """Hex SHA-256 of the newest header, which names all before it."""
        return _id_of(self.header)

    @property
    def ids(self) -> list[str]:
        """The ``plan_id`` of each generation, the first's first."""
        return [_id_of(header) for header in self.headers]

    @property
    def num_shards(self) -> int:
        """How many shards the items go into."""
        return self.header["shards"]

    def shard_name(self, index: int) -> str:
        """``clips-000123.tar``, or ``clips-000123-r2.tar`` where generation 2 was the last to touch it."""
        return self._names(index)[-1]

    def id_of(self, index: int) -> str:
        """The ``plan_id`` that the commit record of a shard carries: of the last generation that touched it."""
        return _id_of(self.headers[self._generations(index)[-1]])

    def superseded(self, index: int) -> list[str]:
        """The names that a shard had before, oldest first."""
        return self._names(index)[:-1]

    def older(self, index: int) -> list[tuple[str, int]]:
        """The names that a shard had before, oldest first, each with its generation."""
        return list(zip(self.superseded(index), self._generations(index), strict=False))

    def shard_names(self, order: Iterable[int] | None = None) -> Iterator[str]:
        """Yield the names of all shards in order, or of those with the indices in ``order``."""
        return map(self.shard_name, range(self.num_shards) if order is None else order)

    def shards(self, order: Iterable[int] | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield ``(shard name, its rows)`` of all shards in order, or of those with the indices in ``order``."""
        rows = self.table.column("shard").to_numpy()
        ends = np.searchsorted(rows, np.arange(self.num_shards), side="right")
        for index in range(self.num_shards) if order is None else order:
            start = int(ends[index - 1]) if index else 0
            yield self.shard_name(index), self.table.slice(start, int(ends[index]) - start).to_pylist()

    def _generations(self, index: int) -> list[int]:
        made = next(number for number, header in enumerate(self.headers) if index < header["shards"])
        return [made, *self.touched.get(index, ())]

    def _names(self, index: int) -> list[str]:
        stem = f"{self.header['prefix']}-{index:06d}"
        return [f"{stem}.tar", *(f"{stem}-r{number}.tar" for number in self.touched.get(index, ()))]


def read_plan(folder: Path) -> Plan:
    """Read and check the plan of an output directory.

    Raises:
        ValueError: there is none, or its files do not belong together.
    """
    if not (folder / "plan.json").is_file():
        raise UsageError(f"{folder} has no plan.json; give a directory that vidvq shard or vidvq tokenize wrote")
    headers = [_read_header(folder / "plan.json")]
    while (folder / _header_name(len(headers))).is_file():
        headers.append(_read_header(folder / _header_name(len(headers))))
        if headers[-1]["parent"] != _id_of(headers[-2]):
            raise UsageError(
                f"{folder / _header_name(len(headers) - 1)} does not follow the plan before it; restore it from a copy"
            )
    table, touched = _read_table(folder, headers[0], 0), {}
    for number, header in enumerate(headers[1:], 1):
        new = _read_table(folder, header, number)
        over = new.filter(pc.less(new["shard"], header["first_shard"]))
        for index in pc.unique(over["shard"]).to_pylist():
            touched[index] = (*touched.get(index, ()), number)
        place = pc.index_in(table["key"], value_set=over["key"].combine_chunks()).fill_null(-1).to_numpy()
        rows = np.where(place < 0, np.arange(table.num_rows), table.num_rows + place)
        behind = over.filter(_not_in(over["key"], table["key"]))
        table = _join(table, over).take(pa.array(rows))
        if behind.num_rows:
            table = _join(table, behind)
            table = table.take(pa.array(np.argsort(table.column("shard").to_numpy(), kind="stable")))
        table = _join(table, new.filter(pc.greater_equal(new["shard"], header["first_shard"])))
    return Plan(tuple(headers), table, touched)


def extend_plan(folder: Path, plan: Plan, made_from: dict[str, Any], table: pa.Table) -> Plan:
    """Write a plan's next generation.

    Args:
        folder: the plan's.
        plan: as it stands.
        made_from: of the whole plan, from now on.
        table: new rows, of the plan's own schema: with a shard from ``plan.num_shards`` on, or with the shard of rows
            that they join, and the key of the one whose place they take, if any. In the order of their shards.

    Raises:
        ValueError: another driver has changed the plan meanwhile.
    """
    shards = max(plan.num_shards, int(table.column("shard").to_numpy().max(initial=-1)) + 1)
    number = len(plan.headers)
    data = _encode_table(table)
    name = f"plan-{number:04d}-{sha256_bytes(data)[:12]}.parquet"
    write_atomic(folder / name, data)
    header = plan.header | {
        "made_from": made_from,
        "items": plan.header["items"] + int(pc.sum(_not_in(table["key"], plan.table["key"])).as_py() or 0),
        "shards": shards,
        "first_shard": plan.num_shards,
        "table": name,
        "table_sha256": sha256_bytes(data),
        "parent": plan.plan_id,
    }
    create_once(folder / _header_name(number), pretty_json(header))
    standing = read_plan(folder)
    if standing.headers[number] != header:
        raise JobStopped(f"{folder} was changed by another driver meanwhile; run the same command again")
    return standing


def ensure_plan(
    folder: Path,
    stage: str,
    prefix: str,
    made_from: dict[str, Any],
    build: Callable[[], pa.Table],
    explain: Callable[[Plan], list[str]] = lambda plan: [],
) -> Plan:
    """The plan of an output directory: the one that is there if it was made from the same, else a new one.

    Args:
        folder: the output directory; made where it is missing.
        stage: ``shard`` or ``tokenize``.
        prefix: of the shards' names, ``clips`` or ``tokens``.
        made_from: JSON types; all that decides what the shards hold. Compared on every run.
        build: makes the table (see :class:`Plan`); called only where there is no plan yet.
        explain: names what differs behind a changed hash in ``made_from``; called only where something differs.

    Raises:
        ValueError: the directory holds a plan made from something else (the differences are named), or other files.
    """
    if not (folder / "plan.json").exists():
        refuse_foreign(folder)
        try:
            table = build()
        except FileNotFoundError:
            # Another driver's plan stands by now, and what this one was planning from is swept away.
            if not (folder / "plan.json").exists():
                raise
            return ensure_plan(folder, stage, prefix, made_from, build, explain)
        shards = int(table.column("shard").to_numpy().max()) + 1 if table.num_rows else 0
        digest = _write_table(folder, table)
        header = {
            "format": FORMAT,
            "stage": stage,
            "made_from": made_from,
            "items": table.num_rows,
            "shards": shards,
            "first_shard": 0,
            "prefix": prefix,
            "table": "plan.parquet",
            "table_sha256": digest,
            "parent": None,
        }
        create_once(folder / "plan.json", pretty_json(header))
        remove_attempts(folder, "plan.*")
    plan = read_plan(folder)
    if plan.header["stage"] != stage:
        raise UsageError(f"{folder} holds the output of vidvq {plan.header['stage']}; give vidvq {stage} another --out")
    found = list(differences("", plan.header["made_from"], made_from))
    if found:
        found = explain(plan) + found
        more = len(found) - _SHOWN_DIFFERENCES
        shown = "; ".join(found[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise UsageError(
            f"{folder} was made from something else: {shown}. Give another --out, or the same inputs and settings"
        )
    return plan


def table_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of rows as they come: never are many of them in memory as Python objects."""
    rows = iter(rows)
    batches = []
    while some := list(islice(rows, _ROWS_AT_A_TIME)):
        batches.append(pa.RecordBatch.from_pylist(some, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def refuse_foreign(folder: Path) -> None:
    """Refuse an output directory without a plan that holds anything but what a killed planner leaves behind.

    Raises:
        ValueError: names what was found.
    """
    for name in sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []:
        if not name.startswith(_OURS) and not (folder / "plan.json").exists():
            raise UsageError(f"{folder} is not empty and has no plan.json (found {name}); give an empty --out")


def _not_in(keys: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.invert(pc.is_in(keys, value_set=others.combine_chunks()))


def _join(table: pa.Table, more: pa.Table) -> pa.Table:
    """Columns that an older vidvq did not write are null."""
    return pa.concat_tables([table, more], promote_options="default")


def _id_of(header: dict[str, Any]) -> str:
    return sha256_bytes(canonical_json(header))


def _header_name(number: int) -> str:
    return f"plan-{number:04d}.json"


def _read_header(path: Path) -> dict[str, Any]:
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UsageError(f"{path} is not a plan of format {FORMAT}")
    validate(_Header, header, f"{path}")
    return header


def _read_table(folder: Path, header: dict[str, Any], number: int) -> pa.Table:
    path = folder / Path(header["table"]).name
    if not path.is_file() or sha256_file(path) != header["table_sha256"]:
        raise UsageError(f"{path} is missing or not the one its plan was written with; restore it from a copy")
    with path.open("rb") as file:
        table = pq.read_table(file)
    return table.append_column("generation", pa.array(np.full(table.num_rows, number, dtype=np.int32)))


def _encode_table(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue().to_pybytes()


def _write_table(folder: Path, table: pa.Table) -> str:
    data = _encode_table(table)
    # Another driver may have written its plan meanwhile: that one stands, with its own table.
    try:
        if not (folder / "plan.json").exists():
            write_atomic(folder / "plan.parquet", data)
    except FileNotFoundError:
        if not (folder / "plan.json").exists():
            raise
    return sha256_bytes(data)
