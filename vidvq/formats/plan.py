"""The plan: every item a job will touch and the shard it goes into, written once before any work.

``plan.parquet`` has a row per item; ``plan.json`` says what it was made from. Its hash is the ``plan_id`` that every
commit record carries. What a shard holds depends on the plan alone: not on workers, order or time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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

FORMAT = "vidvq.plan/1"
_SHOWN_DIFFERENCES = 8
_FIELDS = {"stage", "made_from", "items", "shards", "prefix", "table_sha256"}


@dataclass(frozen=True)
class Plan:
    """A plan as it stands on disk.

    Attributes:
        header: the content of ``plan.json``: ``stage``, ``made_from`` (whatever the content of the shards depends on:
            inputs, policy, tokenizer), ``items``, ``shards``, ``prefix``, ``table_sha256``.
        table: the content of ``plan.parquet``; columns ``key: string`` and ``shard: int32`` and the stage's own,
            rows in the order of their shards.
    """

    header: dict[str, Any]
    table: pa.Table

    @property
    def plan_id(self) -> str:
        """Hex SHA-256 of the header."""
        return sha256_bytes(canonical_json(self.header))

    @property
    def num_shards(self) -> int:
        """How many shards the items go into."""
        return self.header["shards"]

    def shard_name(self, index: int) -> str:
        """``clips-000123.tar``."""
        return f"{self.header['prefix']}-{index:06d}.tar"

    def shards(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield ``(shard name, its rows)`` in order."""
        rows = self.table.column("shard").to_numpy()
        start = 0
        for index in range(self.num_shards):
            end = start
            while end < len(rows) and rows[end] == index:
                end += 1
            yield self.shard_name(index), self.table.slice(start, end - start).to_pylist()
            start = end


def read_plan(folder: Path) -> Plan:
    """Read and check the plan of an output directory.

    Raises:
        ValueError: there is none, or its two files do not belong together.
    """
    if not (folder / "plan.json").is_file():
        raise ValueError(f"{folder} has no plan.json; give a directory that vidvq shard or vidvq tokenize wrote")
    header = read_json(folder / "plan.json")
    if not isinstance(header, dict) or header.get("format") != FORMAT or not header.keys() >= _FIELDS:
        raise ValueError(f"{folder / 'plan.json'} is not a plan of format {FORMAT}")
    table_path = folder / "plan.parquet"
    if not table_path.is_file() or sha256_file(table_path) != header["table_sha256"]:
        raise ValueError(f"{table_path} is missing or not the one plan.json was written with; restore it from a copy")
    return Plan(header, pq.read_table(table_path))


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
        _refuse_foreign(folder)
        table = build()
        shards = int(table.column("shard").to_numpy().max()) + 1 if table.num_rows else 0
        digest = _write_table(folder, table)
        header = {
            "format": FORMAT,
            "stage": stage,
            "made_from": made_from,
            "items": table.num_rows,
            "shards": shards,
            "prefix": prefix,
            "table_sha256": digest,
        }
        create_once(folder / "plan.json", pretty_json(header))
        remove_attempts(folder, "plan.*")
    plan = read_plan(folder)
    if plan.header["stage"] != stage:
        raise ValueError(f"{folder} holds the output of vidvq {plan.header['stage']}; give vidvq {stage} another --out")
    found = list(differences("", plan.header["made_from"], made_from))
    if found:
        found = explain(plan) + found
        more = len(found) - _SHOWN_DIFFERENCES
        shown = "; ".join(found[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(
            f"{folder} was made from something else: {shown}. Give another --out, or the same inputs and settings"
        )
    return plan


def _write_table(folder: Path, table: pa.Table) -> str:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue().to_pybytes()
    # Another driver may have written its plan meanwhile: that one stands, with its own table.
    try:
        if not (folder / "plan.json").exists():
            write_atomic(folder / "plan.parquet", data)
    except FileNotFoundError:
        if not (folder / "plan.json").exists():
            raise
    return sha256_bytes(data)


def _refuse_foreign(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ours = ("plan.parquet", "plan.json.tmp.", "plan.parquet.tmp.")
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith(ours) and not (folder / "plan.json").exists():
            raise ValueError(f"{folder} is not empty and has no plan.json (found {entry.name}); give an empty --out")
