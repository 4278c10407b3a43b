"""The plan of a stage whose input is a directory of clip shards: one shard for each clip shard.

A plan follows its clips. Where ``vidvq shard`` has updated the directory, the next run extends the plan: a clip shard
that was made again, under a new name, gives its shard a new name too; a clip that it no longer holds stays in the plan
as ``removed``; a new clip shard gets a new shard.
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
from vidvq.formats.commit import Commit, read_commits
from vidvq.formats.plan import Plan, create_plan, extend_plan, has_plan, read_plan, refuse_other_origin
from vidvq.formats.rows import REMOVED, codec_of
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.stage import ClipStage

SHARD_STAGE = "shard"


def plan_clips(stage: ClipStage, out: Path) -> Plan:
    """The plan of an output directory: the one that is there, extended where its clips have changed, or a new one.

    Raises:
        UsageError: the clips are unfinished or empty, or the plan that is there was made from other clips or settings.
    """
    clips = read_plan(stage.clips)
    digest = hashlib.sha256()
    table = codec_of(ClipRow).to_table(_rows(read_clip_shards(stage.clips, clips), digest))
    if not table.num_rows:
        raise UsageError(f"{stage.clips} holds no clips; nothing to {stage.name}")
    made_from = {"clips": {"plan_id": clips.plan_id, "sha256": digest.hexdigest()}} | stage.identity()
    if not has_plan(out):
        plan = create_plan(out, stage.name, stage.prefix, made_from, table)
    else:
        plan = read_plan(out)
        if _follows(plan, clips, stage.name, made_from):
            return extend_plan(out, plan, made_from, codec_of(ClipRow).to_table(_changed_rows(plan, clips, table)))
    refuse_other_origin(out, plan, stage.name, made_from)
    return plan


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
    for name, commit in zip(plan.shard_names(), read_commits(folder, plan.shard_names()), strict=True):
        if commit is None:
            raise UsageError(f"{folder}: {name} is not committed; finish vidvq shard first")
        if commit.sha256 is not None:
            yield commit


def _rows(commits: Iterator[Commit], digest: Any) -> Iterator[ClipRow]:
    """Yield the rows of all clips, and add the SHA-256 of each clip shard to ``digest``, one a line."""
    for index, commit in enumerate(commits):
        digest.update(f"{chr(10) if index else ''}{commit.sha256}".encode())
        yield from rows_of(commit, index)


@dataclass(frozen=True)
class _ClipShard:
    """A clip shard as a plan has it: ``index`` is that of the shard made from it."""

    name: str
    sha256: str
    index: int

    def row(self, key: str) -> ClipRow:
        """The row of one clip."""
        return ClipRow(key=key, shard=self.index, clip_shard=self.name, clip_shard_sha256=self.sha256)


def _follows(plan: Plan, clips: Plan, stage: str, made_from: dict[str, Any]) -> bool:
    """Whether the plan was made by the same stage with the same settings from an earlier state of the same clips."""
    before = plan.made_from
    if plan.stage != stage or "clips" not in before:
        return False
    same_settings = before | {"clips": None} == made_from | {"clips": None}
    return same_settings and before["clips"] != made_from["clips"] and before["clips"]["plan_id"] in clips.ids


def _changed_rows(plan: Plan, clips: Plan, table: pa.Table) -> Iterator[ClipRow]:
    """Yield the rows of all shards whose clip shards have changed, in the order of the shards.

    Args:
        plan: the plan as it is.
        clips: the plan of the clips as it is now.
        table: the rows that a plan made now would have.
    """
    names = {_stem(name): name for name in clips.shard_names()}
    codec = codec_of(ClipRow)
    then, now = _by_stem(plan.rows(ClipRow)), _by_stem(codec.from_table(table))
    changed = [stem for stem, shard in then.items() if _differs(shard, now.get(stem))]
    new = [stem for stem in now if stem not in then]
    old_keys = _keys(plan.rows(ClipRow), {then[stem].index for stem in changed})
    keys = _keys(codec.from_table(table), {now[stem].index for stem in (*changed, *new) if stem in now})
    for stem in changed:
        # A clip shard that no longer holds any clip has no file; its name is that of its newest generation.
        there = now.get(stem, _ClipShard(names[stem], "", -1))
        shard = replace(there, index=then[stem].index)
        present = keys.get(there.index, {})
        yield from map(shard.row, present)
        for key in old_keys[shard.index]:
            if key not in present:
                yield shard.row(key).leave_out(REMOVED, "its clip is there no longer")
    for index, stem in enumerate(new, plan.num_shards):
        yield from map(replace(now[stem], index=index).row, keys[now[stem].index])


def _differs(then: _ClipShard, now: _ClipShard | None) -> bool:
    return bool(then.sha256) if now is None else (then.name, then.sha256) != (now.name, now.sha256)


def _by_stem(rows: Iterator[ClipRow]) -> dict[str, _ClipShard]:
    """The clip shards of a plan by stem, in the order of the shards made from them."""
    found = (_ClipShard(row.clip_shard, row.clip_shard_sha256, row.shard) for row in rows)
    return {_stem(shard.name): shard for shard, _ in groupby(found)}


def _keys(rows: Iterator[ClipRow], shards: set[int]) -> dict[int, dict[str, None]]:
    """The keys in each of some shards, in order."""
    found: dict[int, dict[str, None]] = defaultdict(dict)
    for row in rows:
        if row.shard in shards:
            found[row.shard][row.key] = None
    return found


def _stem(name: str) -> str:
    """The same for ``clips-000012.tar`` and ``clips-000012-r1.tar``."""
    return name.removesuffix(".tar").partition("-r")[0]
