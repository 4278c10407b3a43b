"""The plan: every item that a job handles and the shard it goes into, written before any work starts.

``plan.parquet`` has one row per item; ``plan.json`` says what the plan was made from. Its hash is the ``plan_id`` that
every commit record carries. The content of a shard depends on the plan alone, never on workers, order or time.

A finished plan changes by generations: each is an append-only pair of files beside those before it
(``plan-0001.json``, ``plan-0001-DIGEST.parquet``). The rows of a generation are new items, in new shards or appended to
an existing one, or replace the rows with the same keys. A shard that a generation touches gets a new name
(``clips-000012-r1.tar``), so nothing committed is ever overwritten. The old shard is deleted once the new one is
committed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from vidvq.config import is_mapping, leaves
from vidvq.errors import JobStopped, UsageError
from vidvq.formats.arrow import encode_table, find_keys, holds_secrets, parse_table, shards_of
from vidvq.formats.clip_shard import PREFIX as CLIPS
from vidvq.formats.rows import Row, RowCodec
from vidvq.formats.schema import Count, Digest, FileName, Label, parse
from vidvq.storage import (
    PREFLIGHT_MARKER,
    canonical_json,
    create_once,
    differences,
    file_exists,
    is_created_soon,
    is_remote,
    pretty_json,
    read_file,
    read_json,
    remove_attempts,
    resolve_path,
    safe_join,
    sha256_bytes,
    sha256_file,
    unless_done,
    write_atomic,
)

FORMAT = "vidvq.plan/2"
_CHECKS = "checks"
_MAX_SHARDS = 100_000_000
_SHOWN_DIFFERENCES = 8
# Folders in an output directory that are written to.
_FOLDERS = ("commits", "columns")
# Columns that every stage reads, if a plan has them.
_TEXTS = ("reason", "detail", "verdict")
_TABLE = re.compile(r"plan\.parquet|plan-\d{4}-[0-9a-f]{12}\.parquet")
_PLANNING_FILES = ("plan.parquet", "plan.json.tmp.", "plan.parquet.tmp.", "planning", PREFLIGHT_MARKER)


@dataclass(frozen=True)
class PlanHeader:
    """The content of ``plan.json``, or of the JSON file of a later generation.

    Attributes:
        stage: name of the stage that made the plan.
        made_from: all that the content of the shards depends on (inputs, settings, tokenizer), as JSON types.
        items: number of items, of this and all earlier generations.
        shards: number of shards, of this and all earlier generations.
        first_shard: index of the first shard that this generation added.
        prefix: prefix of the shards' names, such as ``clips``.
        table: file name of the rows.
        table_sha256: SHA-256 of that file (hex).
        parent: ``plan_id`` of the generation before; None for the first.
        files: SHA-256 (hex) of the other files of the directory, such as ``tokenizer.json``, by name. Empty in plans of
            older versions.
    """

    stage: Label
    made_from: dict[str, Any]
    items: Count
    shards: Annotated[int, Field(ge=0, le=_MAX_SHARDS)]
    first_shard: Annotated[int, Field(ge=0, le=_MAX_SHARDS)]
    prefix: FileName
    table: FileName
    table_sha256: Digest
    parent: Digest | None
    files: dict[FileName, Digest] = field(default_factory=dict[str, str])

    def to_json(self) -> dict[str, Any]:
        """The fields to hash; without ``files`` if there are none."""
        fields = asdict(self) | {"format": FORMAT}
        return fields if self.files else {name: value for name, value in fields.items() if name != "files"}

    @cached_property
    def plan_id(self) -> str:
        """SHA-256 of the header (hex), which covers all generations before it."""
        return sha256_bytes(canonical_json(self.to_json()))

    def encode(self) -> bytes:
        """Encode the file: the header, and a checksum of each value, which locates an edit."""
        fields = self.to_json()
        return pretty_json(fields | {_CHECKS: {path: _check(value) for path, value in leaves(fields)}})


@dataclass(frozen=True)
class Plan:
    """A plan as it is on disk.

    Attributes:
        headers: one for each generation, oldest first.
        table: the current rows in the order of their shards: the stage's own columns and ``generation: int32``.
        touched: shard index -> the later generations that gave it new rows, ascending.
    """

    headers: tuple[PlanHeader, ...]
    table: pa.Table
    touched: dict[int, tuple[int, ...]]

    @property
    def header(self) -> PlanHeader:
        """The newest header; its ``made_from``, ``items`` and ``shards`` are those of the whole plan."""
        return self.headers[-1]

    @property
    def stage(self) -> str:
        """Name of the stage that made the plan."""
        return self.header.stage

    @property
    def made_from(self) -> dict[str, Any]:
        """All that the content of the shards depends on, as JSON types."""
        return self.header.made_from

    @property
    def plan_id(self) -> str:
        """SHA-256 of the newest header (hex)."""
        return self.header.plan_id

    @property
    def ids(self) -> list[str]:
        """The ``plan_id`` of each generation, oldest first."""
        return [header.plan_id for header in self.headers]

    @property
    def num_items(self) -> int:
        """Number of planned items."""
        return self.header.items

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return self.header.shards

    def shard_name(self, index: int) -> str:
        """``clips-000123.tar``, or ``clips-000123-r2.tar`` if generation 2 was the last to touch it."""
        return self._names(index)[-1]

    def id_of(self, index: int) -> str:
        """The ``plan_id`` in a shard's commit record: that of the last generation that touched the shard."""
        return self.headers[self._generations(index)[-1]].plan_id

    def file_of(self, index: int) -> str:
        """Name of the header of the last generation that touched a shard."""
        return _header_name(self._generations(index)[-1])

    def superseded(self, index: int) -> list[str]:
        """Earlier names of a shard, oldest first."""
        return self._names(index)[:-1]

    def older(self, index: int) -> list[tuple[str, int]]:
        """Earlier names of a shard, oldest first, each with its generation."""
        return list(zip(self.superseded(index), self._generations(index), strict=False))

    def shard_names(self, order: Iterable[int] | None = None) -> Iterator[str]:
        """Yield the names of all shards in order, or of those with the indices in ``order``."""
        return map(self.shard_name, range(self.num_shards) if order is None else order)

    def shards(self, row: type[Row], order: Iterable[int] | None = None) -> Iterator[tuple[str, list[Row]]]:
        """Yield ``(shard name, its rows)`` of all shards in order, or of those with the indices in ``order``."""
        codec = RowCodec(row)
        for index, table in self._tables(order):
            yield self.shard_name(index), list(codec.from_table(table))

    def shard_tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield ``(shard name, its rows)`` of all shards in order, whatever the stage."""
        for index, table in self._tables(None):
            yield self.shard_name(index), table

    def rows(self, row: type[Row]) -> Iterator[Row]:
        """Yield all rows; only a few thousand are held as Python objects at a time."""
        return RowCodec(row).from_table(self.table)

    def _tables(self, order: Iterable[int] | None) -> Iterator[tuple[int, pa.Table]]:
        ends = np.searchsorted(shards_of(self.table), np.arange(self.num_shards), side="right")
        for index in range(self.num_shards) if order is None else order:
            start = int(ends[index - 1]) if index else 0
            yield index, self.table.slice(start, int(ends[index]) - start)

    def _generations(self, index: int) -> list[int]:
        made = next(number for number, header in enumerate(self.headers) if index < header.shards)
        return [made, *self.touched.get(index, ())]

    def _names(self, index: int) -> list[str]:
        stem = f"{self.header.prefix}-{index:06d}"
        return [f"{stem}.tar", *(f"{stem}-r{number}.tar" for number in self.touched.get(index, ()))]


def has_plan(folder: Path) -> bool:
    """Whether a directory has a plan."""
    return file_exists(folder / "plan.json")


def read_plan(
    folder: str | Path, remedy: str = "give a directory that vidvq shard, map, tokenize or generate wrote"
) -> Plan:
    """Read and check the plan of an output directory, given as a path or a URL.

    Args:
        remedy: what to do if there is none.

    Raises:
        UsageError: there is none, its files do not belong together, or a folder in it is a link.
    """
    folder = resolve_path(folder)
    if not has_plan(folder):
        missing = not is_remote(folder) and not folder.exists()
        raise UsageError(f"{folder} {'does not exist' if missing else 'has no plan.json'}; {remedy}")
    for name in _FOLDERS:
        if not is_remote(folder) and (folder / name).is_symlink():
            raise UsageError(f"{folder / name} is a link; records would be written elsewhere; replace it by the folder")
    headers = [_read_header(folder / "plan.json")]
    while file_exists(folder / _header_name(len(headers))):
        headers.append(_read_header(folder / _header_name(len(headers))))
        if headers[-1].parent != headers[-2].plan_id:
            raise UsageError(
                f"{folder / _header_name(len(headers) - 1)} does not follow the plan before it; restore it from a copy"
            )
    _refuse_contradictions(folder, headers)
    table = _read_table(folder, headers[0], 0)
    touched: dict[int, tuple[int, ...]] = {}
    for number, header in enumerate(headers[1:], 1):
        added = _read_table(folder, header, number)
        is_new = shards_of(added) >= header.first_shard
        update = added.filter(~is_new)
        for index in dict.fromkeys(shards_of(update).tolist()):
            touched[index] = (*touched.get(index, ()), number)
        table = _merge(table, update)
        table = _concat(table, added.filter(is_new))
    _refuse_other_table(folder, headers[-1], table)
    return Plan(tuple(headers), table, touched)


def read_clip_plan(folder: Path, name: str) -> Plan:
    """Read and check the plan of a directory of clip shards.

    Args:
        name: the setting or argument that names the directory.

    Raises:
        UsageError: there is none, another command wrote it, or its files do not belong together.
    """
    remedy = f"set {name} to a directory that vidvq shard wrote"
    plan = read_plan(folder, remedy)
    if plan.header.prefix != CLIPS:
        raise UsageError(f"{folder} was written by vidvq {plan.stage}; {remedy}")
    return plan


def newer_generation(folder: Path, plan: Plan) -> str:
    """Name of the header that follows a plan which was read earlier; "" if there is none."""
    following = _header_name(len(plan.headers))
    return following if file_exists(folder / following) else ""


def create_plan(
    folder: Path,
    stage: str,
    prefix: str,
    made_from: dict[str, Any],
    table: pa.Table,
    files: Mapping[str, bytes] | None = None,
) -> Plan:
    """Write the first generation of a plan, unless another driver has written one; return the plan on disk.

    Args:
        folder: the output directory; created if it does not exist.
        prefix: prefix of the shards' names.
        made_from: see :class:`PlanHeader`.
        table: the rows in the order of their shards.
        files: contents of the other files of the directory, by name; the plan records their digests.

    Raises:
        UsageError: the directory holds other files.
    """
    refuse_foreign(folder)
    digest = _write_table(folder, table)
    shards = int(shards_of(table).max()) + 1 if table.num_rows else 0
    digests = {name: sha256_bytes(data) for name, data in (files or {}).items()}
    header = PlanHeader(stage, made_from, table.num_rows, shards, 0, prefix, "plan.parquet", digest, None, digests)
    create_once(folder / "plan.json", header.encode())
    remove_attempts(folder, "plan.*")
    return read_plan(folder)


def extend_plan(folder: Path, plan: Plan, made_from: dict[str, Any], table: pa.Table) -> Plan:
    """Write a plan's next generation.

    Args:
        made_from: what the whole plan is made from, including this generation.
        table: new rows in the order of their shards. A row has a new shard (``plan.num_shards`` or more), or an
            existing shard that it is appended to or in which it replaces the row with the same key.

    Raises:
        JobStopped: another driver has changed the plan in the meantime.
    """
    number = len(plan.headers)
    data = encode_table(table)
    name = f"plan-{number:04d}-{sha256_bytes(data)[:12]}.parquet"
    write_atomic(folder / name, data, holds_secrets(table))
    header = replace(
        plan.header,
        made_from=made_from,
        items=plan.num_items + int((find_keys(table, plan.table) < 0).sum()),
        shards=max(plan.num_shards, int(shards_of(table).max(initial=-1)) + 1),
        first_shard=plan.num_shards,
        table=name,
        table_sha256=sha256_bytes(data),
        parent=plan.plan_id,
    )
    create_once(folder / _header_name(number), header.encode())
    extended = read_plan(folder)
    if extended.headers[number] != header:
        raise JobStopped(f"{folder} was changed by another driver in the meantime; run the same command again")
    return extended


def write_files(folder: Path, plan: Plan, files: Mapping[str, bytes]) -> None:
    """Write the other files of a directory if they are missing or differ from the plan.

    Args:
        plan: the plan; that of an older version has no digests and accepts existing files.
        files: contents that this job would write, by name.

    Raises:
        UsageError: a file is missing or damaged, and this job would write other content than planned.
    """
    for name, data in files.items():
        path, planned = safe_join(folder, name), plan.header.files.get(name)
        exists = file_exists(path)
        if planned and exists and sha256_file(path) == planned:
            continue
        if planned and sha256_bytes(data) != planned:
            raise UsageError(
                f"{path} {'differs from the planned one' if exists else 'is missing'}, and this job would write "
                "another one; restore it from a copy, or resume with the inputs that the plan was made with"
            )
        if planned and exists:
            write_atomic(path, data)
        else:
            create_once(path, data)


def refuse_other_origin(
    folder: Path, plan: Plan, stage: str, made_from: dict[str, Any], changed: Iterable[str] = ()
) -> None:
    """Refuse a plan that another stage, or the same stage with other inputs or settings, has made.

    Args:
        stage: name of the stage that runs now.
        made_from: what a plan made now would be made from.
        changed: what differs behind a hash in ``made_from``; only consumed if something differs.

    Raises:
        UsageError: names what differs.
    """
    if plan.stage != stage:
        raise UsageError(f"{folder} holds the output of vidvq {plan.stage}; give vidvq {stage} another --out")
    if found := list(differences("", plan.made_from, made_from)):
        found = [*changed, *found]
        more = len(found) - _SHOWN_DIFFERENCES
        shown = "; ".join(found[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        same = "Give another --out, or the same inputs and settings"
        if made_from.get("token_fingerprint") != plan.made_from.get("token_fingerprint"):
            same += ", and --checkpoint"
        if made_from.get("inputs") != plan.made_from.get("inputs"):
            same += "; to change the inputs, --add takes new videos alone, and --remove takes one that is gone"
        raise UsageError(f"{folder} was made from other inputs or settings: {shown}. {same}")


def refuse_foreign(folder: Path) -> None:
    """Refuse an output directory without a plan that holds anything but the remains of a killed planner.

    Raises:
        UsageError: names the first file that was found.
    """
    if not is_remote(folder) and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder as --out")
    for name in sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []:
        if not name.startswith(_PLANNING_FILES) and not has_plan(folder):
            raise UsageError(f"{folder} is not empty and has no plan.json (found {name}); give an empty --out")


def _merge(table: pa.Table, update: pa.Table) -> pa.Table:
    """Replace the rows of ``table`` whose keys are in ``update``, and append the other rows to their shards."""
    # Row i of the result is row i of the table, or the row of `update` (which lies behind the table) with its key.
    match = find_keys(table, update)
    take = np.where(match < 0, np.arange(table.num_rows), table.num_rows + match)
    appended = update.filter(find_keys(update, table) < 0)
    table = _concat(table, update).take(pa.array(take, pa.int64()))
    if not appended.num_rows:
        return table
    table = _concat(table, appended)
    # A stable sort moves appended rows to the ends of their shards.
    return table.take(pa.array(np.argsort(shards_of(table), kind="stable"), pa.int64()))


def _concat(table: pa.Table, more: pa.Table) -> pa.Table:
    """Concatenate; columns that an older vidvq did not write are null."""
    return pa.concat_tables([table, more], promote_options="default")


def _header_name(number: int) -> str:
    return f"plan-{number:04d}.json" if number else "plan.json"


def _read_header(path: Path) -> PlanHeader:
    fields = read_json(path)
    checks: Any = fields.pop(_CHECKS, None) if is_mapping(fields) else None
    header = parse(PlanHeader, fields, FORMAT, f"{path}")
    if checks is not None:
        found = {name: _check(value) for name, value in leaves(fields)}
        known: dict[str, Any] = checks if is_mapping(checks) else {}
        if edited := sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name)):
            value = dict(leaves(fields)).get(edited[0], "absent")
            raise UsageError(
                f"{path}: {edited[0]} was edited after planning (now {str(value)[:80]}); set it back, or restore the "
                "file from a copy"
            )
    return header


def _check(value: Any) -> str:
    return sha256_bytes(canonical_json(value))[:8]


def _refuse_contradictions(folder: Path, headers: list[PlanHeader]) -> None:
    """Refuse generations with inconsistent numbers or names."""
    before: PlanHeader | None = None
    for number, header in enumerate(headers):
        first = before.shards if before else 0
        same = not before or (header.prefix, header.stage, header.files) == (before.prefix, before.stage, before.files)
        grown = not before or (header.shards >= before.shards and header.items >= before.items)
        if not same or not grown or header.first_shard != first or not _TABLE.fullmatch(header.table):
            raise UsageError(
                f"{folder / _header_name(number)} is inconsistent with itself or its parent; restore it from a copy"
            )
        before = header


def _refuse_other_table(folder: Path, header: PlanHeader, table: pa.Table) -> None:
    """Refuse invalid rows of a plan: a wrong number, repeated keys, shards out of order or out of range."""
    shards = shards_of(table)
    in_order = not len(shards) or (shards[0] >= 0 and shards[-1] < header.shards and bool((np.diff(shards) >= 0).all()))
    keys = table.column("key").combine_chunks()
    if table.num_rows != header.items or not in_order or len(keys.unique()) != len(keys) or keys.null_count:
        raise UsageError(
            f"{folder}: the rows of the plan do not match the {header.items} items of its header; restore both"
        )


def _read_table(folder: Path, header: PlanHeader, number: int) -> pa.Table:
    path = safe_join(folder, header.table)
    data = read_file(path) if file_exists(path) else b""
    if sha256_bytes(data) != header.table_sha256:
        raise UsageError(f"{path} is missing or not the one its plan was written with; restore it from a copy")
    table = parse_table(data, path)
    table = table.append_column("generation", pa.array(np.full(table.num_rows, number, dtype=np.int32)))
    kinds = dict(zip(table.column_names, map(str, table.schema.types), strict=True))
    if (kinds.get("key"), kinds.get("shard")) != ("string", "int32"):
        raise UsageError(f"{path} has no columns key (string) and shard (int32); restore it from a copy")
    if len(kinds) < table.num_columns or any(kinds.get(name, "string") != "string" for name in _TEXTS):
        raise UsageError(f"{path} has a column twice, or {', '.join(_TEXTS)} are not text; restore it from a copy")
    return table


def _write_table(folder: Path, table: pa.Table) -> str:
    data, path = encode_table(table), folder / "plan.parquet"
    digest, private = sha256_bytes(data), holds_secrets(table)
    # If another driver has written its plan in the meantime, that plan stands, with its own table.
    with unless_done(lambda: has_plan(folder)):
        if has_plan(folder) or create_once(path, data, private) or sha256_file(path) == digest:
            return digest
        # Other rows, as of a driver that could not read a video, which is about to create its plan or was killed.
        if not is_created_soon(folder / "plan.json"):
            write_atomic(path, data, private)
    return digest
