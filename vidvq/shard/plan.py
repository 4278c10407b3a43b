"""Which clips a corpus will give, decided before the first one is cut."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.config import to_dict
from vidvq.corpus.fetch import as_video_error, content_hash, local_file
from vidvq.corpus.inputs import SOURCE_COLUMNS, Fingerprint, Source, source_of
from vidvq.corpus.listing import Listing, look_into, remove_parts
from vidvq.corpus.planned import confirm_plan, number_shards
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import PREFIX, clip_key
from vidvq.formats.plan import Plan, ensure_plan, refuse_foreign
from vidvq.runtime import Pool, WorkerDied
from vidvq.shard.config import ClipPolicy, ShardConfig
from vidvq.shard.shots import find_shots
from vidvq.video import VideoError
from vidvq.video.decode import sample_timeline
from vidvq.video.probe import VideoInfo, probe

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        # The source, as it was listed.
        *SOURCE_COLUMNS,
        # Of the file's content; "" where it could not be read.
        ("sha256", pa.string()),
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
    config: ShardConfig


def made_from(config: ShardConfig, inputs: Fingerprint) -> dict[str, Any]:
    """All that decides what the shards hold, as JSON types."""
    settings = to_dict(config)
    decisive = ("clip", "cut", "filters", "lists", "clips_per_shard", "limits")
    return {name: settings[name] for name in decisive} | {"inputs": inputs.value()}


def plan_shards(out: Path, sources: Callable[[], Iterable[Source]], config: ShardConfig, pool: Pool) -> Plan:
    """The plan of an output directory, made now or on an earlier run.

    Planning is kept as it goes, in parts, and goes on where it stopped.

    Args:
        out: the output directory.
        sources: lists the inputs, from their beginning at each call.
        config: how.
        pool: where.

    Raises:
        ValueError: the directory's plan was made from other inputs or settings.
    """
    if (out / "plan.json").is_file():
        return confirm_plan(out, "shard", PREFIX, sources, partial(made_from, config))
    refuse_foreign(out)
    listing = Listing(sources())
    if not listing.parts:
        raise UsageError("the inputs name no video at all")
    origin = made_from(config, listing.inputs)

    def build() -> pa.Table:
        rows = deduplicate(probe_sources(out, listing, config, pool), {}, config)
        return number_shards(rows, 0, config.clips_per_shard, SCHEMA)

    plan = ensure_plan(out, "shard", PREFIX, origin, build)
    remove_parts(out)
    return plan


def probe_sources(out: Path, listing: Listing, config: ShardConfig, pool: Pool) -> Iterator[pa.Table]:
    """Yield the rows of all sources, a part at a time, in order; see :func:`vidvq.corpus.listing.look_into`."""
    order = config.runtime.order
    origin = made_from(config, listing.inputs)
    return look_into(out, listing, origin, SCHEMA, lambda sources: _probe(sources, config, pool), order)


def _probe(sources: Iterable[Source], config: ShardConfig, pool: Pool) -> Iterator[list[dict[str, Any]]]:
    jobs = (ProbeJob(source, config) for source in sources)
    # A worker may have been killed from outside; what kills it thrice is the video.
    for job, found in pool.map(plan_source, jobs, deadline_s=config.limits.deadline_s, retries=2):
        if isinstance(found, WorkerDied):
            found = [_reject(job.source, "", 0, "failed", "decoder_died", "the prober crashed or hung on it")]
        yield found


def deduplicate(tables: Iterable[pa.Table], known: dict[str, str], config: ShardConfig) -> Iterator[dict[str, Any]]:
    """Yield rows, with one row ``filtered(duplicate)`` for all of a file whose bytes were there before.

    Args:
        tables: rows of :data:`SCHEMA`, those of one source together.
        known: SHA-256 -> uri of what is there; grows.
        config: says whether duplicates are to go at all.
    """
    for table in tables:
        dropped = ""
        for row in table.to_pylist():
            source = source_of(row)
            first = known.setdefault(row["sha256"], row["uri"]) if row["sha256"] else row["uri"]
            if first == row["uri"] or not config.filters.duplicates:
                yield row
            elif dropped != source.identity:
                dropped = source.identity
                yield _reject(source, row["sha256"], 0, "filtered", "duplicate", f"has the same bytes as {first}")


def plan_source(job: ProbeJob) -> list[dict[str, Any]]:
    """The rows of one source: its clips, and a row with the verdict for what cannot become one. Never empty."""
    source, config = job.source, job.config
    digest = ""
    try:
        window = _range(source)
        with local_file(source, config.limits.max_bytes) as path:
            info = probe(path, config.limits)
            digest = content_hash(path)
            if min(info.height, info.width) < config.filters.min_side:
                detail = f"is {info.width}x{info.height}; filters.min_side={config.filters.min_side}"
                return [_reject(source, digest, 0, "filtered", "too_small", detail)]
            config.clip.frame_size(info)
            _, times = sample_timeline(info, config.clip.fps)
            shots = find_shots(path, info, config.cut) if config.cut.kind == "shots" else [0]
    except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
        failure = as_video_error(error)
        return [_reject(source, digest, 0, "failed", failure.reason, failure.detail)]
    rows: list[dict[str, Any]] = []
    longest = 0
    for begin, end in _segments(info, times, shots, window):
        longest = max(longest, end - begin)
        for first, length in _windows(begin, end, config.clip, info):
            if length >= config.clip.min_frames:
                rows.append(_row(source, digest, len(rows), first=first, num_frames=length))
    if info.torn:
        detail = f"the file ends early; {len(rows)} clips were cut from the {info.num_frames} frames that are there"
        rows.append(_reject(source, digest, len(rows), "failed", "truncated", detail))
    elif not rows and not longest:
        detail = f"the range {source.start_s} to {source.end_s} s is not in its {info.num_frames} frames"
        rows.append(_reject(source, digest, 0, "failed", "bad_range", detail))
    elif not rows and config.clip.encoding == "copy" and longest > config.clip.min_frames:
        detail = f"has no two keyframes within clip.num_frames={config.clip.num_frames} that all between decode alone"
        rows.append(_reject(source, digest, 0, "failed", "not_on_keyframes", detail))
    elif not rows:
        where = "" if source.identity == source.uri else f"from {source.start_s} to {source.end_s} s "
        where += "its longest shot " if len(shots) > 1 else ""
        detail = f"{where}has {longest} frames; a clip needs clip.min_frames={config.clip.min_frames}"
        rows.append(_reject(source, digest, 0, "filtered", "too_short", detail))
    return rows


def _range(source: Source) -> tuple[float, float]:
    start = 0.0 if source.start_s is None else source.start_s
    end = math.inf if source.end_s is None else source.end_s
    if not 0 <= start < end:
        raise VideoError(
            "bad_range", f"has start {source.start_s} and end {source.end_s}; needs 0 <= start < end, seconds"
        )
    return start, end


def _windows(begin: int, end: int, policy: ClipPolicy, info: VideoInfo) -> Iterator[tuple[int, int]]:
    """Where clips begin and how long they are, from frame ``begin`` to before ``end`` of the sampled timeline."""
    if policy.encoding != "copy":
        for first in range(begin, end, policy.stride or policy.num_frames):
            yield first, min(policy.num_frames, end - first)
        return
    # Whole groups of pictures, as many as a clip may hold; at the end of the video one needs no keyframe behind it.
    edges = [key for key in info.keyframes if begin <= key < end]
    edges += [end] if end == info.num_frames or end in info.keyframes else []
    while len(edges) > 1:
        fitting = [edge for edge in edges[1:] if edge - edges[0] <= policy.num_frames]
        if fitting:
            yield edges[0], fitting[-1] - edges[0]
        edges = [edge for edge in edges if edge >= (fitting[-1] if fitting else edges[1])]


def _segments(
    info: VideoInfo, times: Sequence[int], shots: list[int], window: tuple[float, float]
) -> Iterator[tuple[int, int]]:
    """Stretches of the sampled timeline that clips may be cut from: each shot, as far as it is in the window."""
    begin, end = info.pts[0] + window[0] / info.time_base, info.pts[0] + window[1] / info.time_base
    edges = [*(info.pts[shot] for shot in shots), math.inf]
    for start, stop in pairwise(edges):
        yield bisect_left(times, max(start, begin)), bisect_left(times, min(stop, end))


def _row(source: Source, digest: str, clip_index: int, **fields: Any) -> dict[str, Any]:
    return {
        "key": clip_key(source.identity, clip_index),
        "uri": source.uri,
        "size": source.size,
        "version": source.version,
        "offset": source.offset,
        "start_s": source.start_s,
        "end_s": source.end_s,
        "carried": source.carried,
        "sha256": digest,
        "clip_index": clip_index,
        "first": 0,
        "num_frames": 0,
        "verdict": "",
        "reason": "",
        "detail": "",
    } | fields


def _reject(source: Source, digest: str, clip_index: int, verdict: str, reason: str, detail: str) -> dict[str, Any]:
    return _row(source, digest, clip_index, verdict=verdict, reason=reason, detail=detail)
