"""The plan of a stage whose input is a directory of clip shards: one shard for each clip shard.

A plan follows its clips, and the columns that ``where`` selects by. Where ``vidvq shard`` has updated the directory,
the next run extends the plan: a clip shard that was made again, under a new name, gives its shard a new name too; a
clip that it no longer holds stays in the plan as ``removed``; a new clip shard gets a new shard.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.errors import UsageError
from vidvq.formats.commit import Commit, read_finished
from vidvq.formats.plan import Plan, create_plan, extend_plan, has_plan, read_plan, refuse_other_origin
from vidvq.formats.rows import NOT_SELECTED, REMOVED, RowCodec
from vidvq.formats.selection import ClipSelection
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.stage import ClipStage

SHARD_STAGE = "shard"
# Entries of `made_from` that may change from one state of the inputs to a later one.
_NO_INPUTS: dict[str, Any] = {"clips": None, "columns": None}


def plan_clips(stage: ClipStage, out: Path) -> Plan:
    """Read the plan of an output directory, updated if the clips have changed, or write a new one.

    Raises:
        UsageError: the clips are unfinished or empty, ``where`` is wrong, or the plan that is there was made from other
            clips or settings.
    """
    clips = read_plan(stage.clips)
    digest = hashlib.sha256()
    commits = read_clip_shards(stage.clips, clips)
    selection = ClipSelection(stage.clips, clips, stage.where, "where") if stage.where else None
    table = RowCodec(ClipRow).to_table(_rows(commits, selection, digest))
    if not table.num_rows:
        raise UsageError(f"{stage.clips} has no clips to {stage.name}")
    made_from = {"clips": {"plan_id": clips.plan_id, "sha256": digest.hexdigest()}} | stage.identity()
    made_from |= selection.identity() if selection else {}
    if not has_plan(out):
        plan = create_plan(out, stage.name, stage.prefix, made_from, table, stage.files())
    else:
        plan = read_plan(out)
        if _follows(plan, clips, selection, stage.name, made_from):
            return extend_plan(out, plan, made_from, RowCodec(ClipRow).to_table(_changed_rows(plan, clips, table)))
    refuse_other_origin(out, plan, stage.name, made_from)
    return plan


def select_rows(commit: Commit, index: int, selection: ClipSelection | None) -> Iterator[ClipRow]:
    """Yield the rows of one clip shard's clips, for the shard with an index; those not selected are left out."""
    selected = selection.keys(commit) if selection else set[str]()
    for row in rows_of(commit, index):
        if selection and row.key not in selected:
            row = row.leave_out(NOT_SELECTED, f"where={selection.text}")
        yield row


def rows_of(commit: Commit, index: int) -> Iterator[ClipRow]:
    """Yield the rows of one clip shard's clips, for the shard with an index."""
    for key in dict.fromkeys(member.key for member in commit.members):
        yield ClipRow(key=key, shard=index, clip_shard=commit.shard, clip_shard_sha256=commit.sha256 or "")


def read_clip_shards(folder: Path, plan: Plan) -> Iterator[Commit]:
    """Yield the records of the clip shards that hold at least one clip, in their order.

    Raises:
        UsageError: the directory holds something else, or is not finished.
    """
    if plan.stage != SHARD_STAGE:
        raise UsageError(f"{folder} was written by vidvq {plan.stage}; give a directory of clip shards")
    yield from read_finished(folder, plan)


def _rows(commits: Iterator[Commit], selection: ClipSelection | None, digest: Any) -> Iterator[ClipRow]:
    """Yield the rows of all clips, and add the SHA-256 of each clip shard to ``digest``, one per line."""
    for index, commit in enumerate(commits):
        digest.update(f"{chr(10) if index else ''}{commit.sha256}".encode())
        yield from select_rows(commit, index, selection)
    if selection:
        selection.finish()


@dataclass(frozen=True)
class _ClipShard:
    """A clip shard in a plan; ``index`` is that of the shard made from it."""

    name: str
    sha256: str
    index: int

    def row(self, key: str) -> ClipRow:
        """The row of one clip."""
        return ClipRow(key=key, shard=self.index, clip_shard=self.name, clip_shard_sha256=self.sha256)


def _follows(plan: Plan, clips: Plan, selection: ClipSelection | None, stage: str, made_from: dict[str, Any]) -> bool:
    """Whether the plan was made by the same stage with the same settings from an earlier state of the same inputs."""
    before = plan.made_from
    if plan.stage != stage or "clips" not in before or before == made_from:
        return False
    if before | _NO_INPUTS != made_from | _NO_INPUTS or before["clips"]["plan_id"] not in clips.ids:
        return False
    then, sets = before.get("columns", {}), selection.sets if selection else {}
    return then.keys() == sets.keys() and all(then[name]["plan_id"] in sets[name].plan.ids for name in sets)


def _changed_rows(plan: Plan, clips: Plan, table: pa.Table) -> Iterator[ClipRow]:
    """Yield the rows of all shards whose clip shards or selections have changed, in the order of the shards.

    Args:
        plan: current plan.
        table: rows of a plan made from the current clips.
    """
    names = {_stem(name): name for name in clips.shard_names()}
    codec = RowCodec(ClipRow)
    then, now = _by_stem(plan.rows(ClipRow)), _by_stem(codec.from_table(table))
    selected_then, selected_now = _left_out(plan.rows(ClipRow)), _left_out(codec.from_table(table))
    changed = [
        stem
        for stem, shard in then.items()
        if _differs(shard, now.get(stem)) or (selected_then[stem] != selected_now[stem] and stem in now)
    ]
    new = [stem for stem in now if stem not in then]
    old_rows = _rows_of_shards(plan.rows(ClipRow), {then[stem].index for stem in changed})
    rows = _rows_of_shards(codec.from_table(table), {now[stem].index for stem in (*changed, *new) if stem in now})
    for stem in changed:
        # A clip shard that no longer holds any clip has no file; its name is that of its newest generation.
        there = now.get(stem, _ClipShard(names[stem], "", -1))
        shard = replace(there, index=then[stem].index)
        present = rows.get(there.index, {})
        for row in present.values():
            yield replace(row, shard=shard.index)
        for key in old_rows[shard.index]:
            if key not in present:
                yield shard.row(key).leave_out(REMOVED, "its clip no longer exists")
    for index, stem in enumerate(new, plan.num_shards):
        for row in rows[now[stem].index].values():
            yield replace(row, shard=index)


def _differs(then: _ClipShard, now: _ClipShard | None) -> bool:
    return bool(then.sha256) if now is None else (then.name, then.sha256) != (now.name, now.sha256)


def _by_stem(rows: Iterator[ClipRow]) -> dict[str, _ClipShard]:
    """The clip shards of a plan by stem, in the order of the shards made from them."""
    found = (_ClipShard(row.clip_shard, row.clip_shard_sha256, row.shard) for row in rows)
    return {_stem(shard.name): shard for shard, _ in groupby(found)}


def _left_out(rows: Iterator[ClipRow]) -> dict[str, set[str]]:
    """Keys that were not selected, by stem of the clip shard."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.reason == NOT_SELECTED:
            found[_stem(row.clip_shard)].add(row.key)
    return found


def _rows_of_shards(rows: Iterator[ClipRow], shards: set[int]) -> dict[int, dict[str, ClipRow]]:
    """Rows of some shards by key, in order."""
    found: dict[int, dict[str, ClipRow]] = defaultdict(dict)
    for row in rows:
        if row.shard in shards:
            found[row.shard][row.key] = row
    return found


def _stem(name: str) -> str:
    """Stem without the generation: equal for ``clips-000012.tar`` and ``clips-000012-r1.tar``."""
    return name.removesuffix(".tar").partition("-r")[0]
