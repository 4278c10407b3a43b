"""Tokens follow their clips: where ``vidvq shard`` has changed a directory, only what it touched is made again."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from vidvq.corpus.planned import REMOVED
from vidvq.formats.plan import Plan, extend_plan, read_plan

# pyarrow makes these functions when it is imported, where no type checker sees them.
pc: Any = pyarrow.compute
_SHARD = ["clip_shard", "clip_shard_sha256", "shard"]


def follow_clips(out: Path, clips: Plan, made_from: dict[str, Any], table: pa.Table) -> Plan | None:
    """Extend the plan of a directory of tokens by what became of its clips; None where that is not how it differs.

    A clip shard that was made again, under a new name, gives its token shard a new name too; a clip that it holds no
    longer stays in the plan as ``removed``. A new clip shard gets a new token shard.

    Args:
        out: the output directory.
        clips: the plan of the clips as it stands.
        made_from: what a plan made now would say.
        table: the rows it would have.
    """
    if not (out / "plan.json").is_file():
        return None
    plan = read_plan(out)
    before = plan.header["made_from"]
    if before | {"clips": None} != made_from | {"clips": None} or before["clips"] == made_from["clips"]:
        return None
    if before["clips"]["plan_id"] not in clips.ids:
        return None
    names = {_stem(name): name for name in clips.shard_names()}
    then, now = _by_stem(plan.table), _by_stem(table)
    changed = [stem for stem, shard in then.items() if _other(shard, now.get(stem))]
    new = [stem for stem in now if stem not in then]
    keys = _keys(table, [now[stem]["clip_shard"] for stem in (*changed, *new) if stem in now])
    old_keys = _keys(plan.table, [then[stem]["clip_shard"] for stem in changed])
    rows: list[dict[str, Any]] = []
    for stem in sorted(changed, key=lambda stem: then[stem]["shard"]):
        shard = then[stem] | {"clip_shard": names[stem], "clip_shard_sha256": ""} | now.get(stem, {})
        shard |= {"shard": then[stem]["shard"], "reason": "", "detail": ""}
        there = keys[shard["clip_shard"]]
        gone = {"reason": REMOVED, "detail": "its clip is there no longer"}
        rows += [shard | {"key": key} for key in there]
        rows += [shard | gone | {"key": key} for key in old_keys[then[stem]["clip_shard"]] if key not in there]
    for index, stem in enumerate(new, plan.num_shards):
        shard = now[stem] | {"shard": index, "reason": "", "detail": ""}
        rows += [shard | {"key": key} for key in keys[shard["clip_shard"]]]
    return extend_plan(out, plan, made_from, pa.Table.from_pylist(rows, schema=table.schema))


def _stem(name: str) -> str:
    """``clips-000012-r1.tar`` and ``clips-000012.tar`` are the same shard."""
    return name.removesuffix(".tar").partition("-r")[0]


def _by_stem(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Clip shards by stem, in the order of their token shards."""
    shards = table.select(_SHARD).group_by(_SHARD, use_threads=False).aggregate([]).to_pylist()
    return {_stem(shard["clip_shard"]): shard for shard in sorted(shards, key=lambda shard: shard["shard"])}


def _other(shard: dict[str, Any], now: dict[str, Any] | None) -> bool:
    if now is None:
        return bool(shard["clip_shard_sha256"])
    return any(shard[name] != now[name] for name in ("clip_shard", "clip_shard_sha256"))


def _keys(table: pa.Table, clip_shards: Iterable[str]) -> dict[str, dict[str, None]]:
    """The keys in each of some clip shards, in order."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    some = table.filter(pc.is_in(table["clip_shard"], value_set=pa.array(list(clip_shards), pa.string())))
    for row in some.select(["key", "clip_shard"]).to_pylist():
        found[row["clip_shard"]][row["key"]] = None
    return found
