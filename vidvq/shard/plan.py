"""Which clips a corpus will give, decided before the first one is cut."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.config import to_dict
from vidvq.formats.clip_shard import PREFIX, clip_key
from vidvq.formats.plan import Plan, ensure_plan
from vidvq.log import progress
from vidvq.runtime import Pool, WorkerDied
from vidvq.shard.config import ClipPolicy, ShardConfig
from vidvq.shard.inputs import Source, fingerprint_sources
from vidvq.video import VideoError
from vidvq.video.decode import fit_size, sample_timeline
from vidvq.video.probe import Limits, probe

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("clip_index", pa.int32()),
        # A clip is frames first to first + num_frames of the sampled timeline.
        ("first", pa.int64()),
        ("num_frames", pa.int32()),
        # What was decided without decoding: "" for a clip to cut, else failed or filtered.
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class ProbeJob:
    """One source to look at; travels to a worker."""

    source: Source
    policy: ClipPolicy
    limits: Limits


def plan_shards(out: Path, sources: list[Source], config: ShardConfig, pool: Pool) -> Plan:
    """The plan of an output directory, made now or on an earlier run.

    Raises:
        ValueError: the directory's plan was made from other inputs or settings.
    """
    made_from = {
        "inputs": fingerprint_sources(sources),
        "clip": to_dict(config.clip),
        "clips_per_shard": config.clips_per_shard,
        "limits": to_dict(config.limits),
    }

    def build() -> pa.Table:
        rows: list[dict[str, Any]] = []
        jobs = (ProbeJob(source, config.clip, config.limits) for source in sources)
        with progress("plan", len(sources), "videos") as bar:
            for job, found in pool.map(plan_source, jobs, deadline_s=config.limits.deadline_s):
                if isinstance(found, WorkerDied):
                    found = [_reject(job.source, 0, "failed", "decoder_died", "the prober crashed or hung on it")]
                rows.extend(found)
                bar.advance()
        for index, row in enumerate(rows):
            row["shard"] = index // config.clips_per_shard
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def explain(plan: Plan) -> list[str]:
        return _explain_inputs(plan, sources)

    return ensure_plan(out, "shard", PREFIX, made_from, build, explain)


def plan_source(job: ProbeJob) -> list[dict[str, Any]]:
    """The rows of one video: its clips, and a row with the verdict for what cannot become one. Never empty."""
    source, policy = job.source, job.policy
    try:
        info = probe(Path(source.uri), job.limits)
        fit_size(info.height, info.width, policy.short_side, policy.multiple)
        _, times = sample_timeline(info, policy.fps)
    except VideoError as error:
        return [_reject(source, 0, "failed", error.reason, error.detail)]
    rows: list[dict[str, Any]] = []
    for first in range(0, len(times), policy.stride or policy.num_frames):
        length = min(policy.num_frames, len(times) - first)
        if length >= policy.min_frames:
            rows.append(_row(source, len(rows), first=first, num_frames=length))
    if info.torn:
        detail = f"the file ends early; {len(rows)} clips were cut from the {info.num_frames} frames that are there"
        rows.append(_reject(source, len(rows), "failed", "truncated", detail))
    elif not rows:
        detail = f"has {len(times)} frames; a clip needs min_frames={policy.min_frames}"
        rows.append(_reject(source, 0, "filtered", "too_short", detail))
    return rows


def _row(source: Source, clip_index: int, **fields: Any) -> dict[str, Any]:
    return {
        "key": clip_key(source.uri, clip_index),
        "uri": source.uri,
        "size": source.size,
        "mtime_ns": source.mtime_ns,
        "clip_index": clip_index,
        "first": 0,
        "num_frames": 0,
        "verdict": "",
        "reason": "",
        "detail": "",
    } | fields


def _reject(source: Source, clip_index: int, verdict: str, reason: str, detail: str) -> dict[str, Any]:
    return _row(source, clip_index, verdict=verdict, reason=reason, detail=detail)


def _explain_inputs(plan: Plan, sources: list[Source]) -> list[str]:
    columns = (plan.table.column(name).to_pylist() for name in ("uri", "size", "mtime_ns"))
    old = {uri: (size, mtime) for uri, size, mtime in zip(*columns, strict=True)}
    new = {source.uri: (source.size, source.mtime_ns) for source in sources}
    added = [f"{uri} was added" for uri in sorted(new.keys() - old.keys())]
    removed = [f"{uri} was removed" for uri in sorted(old.keys() - new.keys())]
    changed = [f"{uri} was changed" for uri in sorted(old.keys() & new.keys()) if old[uri] != new[uri]]
    return added + removed + changed
