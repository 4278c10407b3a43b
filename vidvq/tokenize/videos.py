"""Which token samples raw videos give: one for each fresh start of a stream, decided before the first is encoded."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.config import to_dict
from vidvq.corpus.fetch import as_video_error, content_hash, local_file
from vidvq.corpus.frames import window_of
from vidvq.corpus.inputs import SOURCE_COLUMNS, Fingerprint, Source, list_sources
from vidvq.corpus.listing import Listing, look_into, remove_parts
from vidvq.corpus.planned import confirm_plan, number_shards
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import clip_key
from vidvq.formats.plan import Plan, ensure_plan
from vidvq.formats.token_shard import PREFIX, TokenizerCard
from vidvq.runtime import Pool, WorkerDied
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.plan import written_as
from vidvq.video import VideoError
from vidvq.video.decode import sample_timeline
from vidvq.video.probe import probe

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        # The source, as it was listed; start_s and end_s are the list's own stretch of it.
        *SOURCE_COLUMNS,
        ("sha256", pa.string()),
        # Which fresh start of that video; frames first to first + num_frames of the sampled timeline.
        ("clip_index", pa.int32()),
        ("first", pa.int64()),
        ("num_frames", pa.int64()),
        # The same in seconds from the video's first frame, to find a moment by.
        ("begin_s", pa.float64()),
        ("until_s", pa.float64()),
        # Why there is nothing to encode; "" for a sample.
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class LookJob:
    """One source to look at; travels to a worker."""

    source: Source
    config: TokenizeConfig


def refuse_gop(gop_frames: int | None, temporal_factor: int) -> None:
    """Refuse a length that the tokenizer's groups do not fill.

    Raises:
        ValueError: names the nearest lengths that they do.
    """
    if gop_frames is not None and (over := (gop_frames - 1) % temporal_factor):
        below = gop_frames - over
        raise UsageError(
            f"gop_frames={gop_frames} must be 1 + a multiple of {temporal_factor}; nearest {below} or "
            f"{below + temporal_factor}"
        )


def plan_videos(out: Path, inputs: list[str], config: TokenizeConfig, card: TokenizerCard, pool: Pool) -> Plan:
    """The plan of an output directory, made now or on an earlier run.

    Raises:
        ValueError: an input does not exist, or the plan there was made from other videos, settings or tokenizer.
    """
    refuse_gop(config.gop_frames, card.temporal_factor)

    def origin(found: Fingerprint) -> dict[str, Any]:
        return made_from(config, found, card)

    if (out / "plan.json").is_file():
        return confirm_plan(out, "tokenize", PREFIX, lambda: list_sources(inputs, config.lists), origin)
    listing = Listing(list_sources(inputs, config.lists))
    if not listing.parts:
        raise UsageError("the inputs name no video at all")

    def build() -> pa.Table:
        tables = look_into_videos(out, listing, config, card, pool)
        return number_shards((row for table in tables for row in table.to_pylist()), 0, config.items_per_shard, SCHEMA)

    plan = ensure_plan(out, "tokenize", PREFIX, origin(listing.inputs), build)
    remove_parts(out)
    return plan


def made_from(config: TokenizeConfig, inputs: Fingerprint, card: TokenizerCard) -> dict[str, Any]:
    """All that decides what the shards hold, as JSON types."""
    settings = to_dict(config)
    decisive = {name: settings[name] for name in ("video", "gop_frames", "items_per_shard", "lists", "limits")}
    decisive |= {"inputs": inputs.value(), "token_fingerprint": card.token_fingerprint}
    return decisive | written_as(config, card)


def look_into_videos(
    out: Path, listing: Listing, config: TokenizeConfig, card: TokenizerCard, pool: Pool
) -> Iterator[pa.Table]:
    """Yield the rows of all sources, a part at a time, in order; see :func:`vidvq.corpus.listing.look_into`."""
    origin, order = made_from(config, listing.inputs, card), config.runtime.order
    return look_into(out, listing, origin, SCHEMA, lambda sources: _look(sources, config, pool), order)


def look_at(job: LookJob) -> list[dict[str, Any]]:
    """The rows of one source: its samples, and a row with the reason for what cannot become one. Never empty."""
    source, config = job.source, job.config
    try:
        start_s = 0.0 if source.start_s is None else source.start_s
        end_s = math.inf if source.end_s is None else source.end_s
        if not 0 <= start_s < end_s:
            raise VideoError("bad_range", f"has start {start_s} and end {end_s}; needs 0 <= start < end, seconds")
        with local_file(source, config.limits.max_bytes) as path:
            info = probe(path, config.limits)
            digest = content_hash(path)
        config.video.frame_size(info)
        _, times = sample_timeline(info, config.video.fps)
    except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
        failure = as_video_error(error)
        return [_row(source, 0, reason=failure.reason, detail=failure.detail)]
    begin, end = window_of(info, times, start_s, end_s)
    rows = []
    for first in range(begin, end, config.gop_frames or max(end - begin, 1)):
        length = min(config.gop_frames or end - begin, end - first)
        after = times[first + length] if first + length < len(times) else times[-1] + info.tick_per_frame
        seconds = {
            "begin_s": float((times[first] - info.pts[0]) * info.time_base),
            "until_s": float((after - info.pts[0]) * info.time_base),
        }
        rows.append(_row(source, len(rows), sha256=digest, first=first, num_frames=length, **seconds))
    if not rows:
        detail = f"the range {source.start_s} to {source.end_s} s is not in its {info.num_frames} frames"
        rows.append(_row(source, 0, reason="bad_range", detail=detail))
    elif info.torn:
        detail = f"the file ends early; its {info.num_frames} frames are used"
        rows.append(_row(source, len(rows), reason="truncated", detail=detail))
    return rows


def _look(sources: Iterable[Source], config: TokenizeConfig, pool: Pool) -> Iterator[list[dict[str, Any]]]:
    jobs = (LookJob(source, config) for source in sources)
    for job, found in pool.map(look_at, jobs, deadline_s=config.limits.deadline_s, retries=2):
        if isinstance(found, WorkerDied):
            found = [_row(job.source, 0, reason="decoder_died", detail="the prober crashed or hung on it")]
        yield found


def _row(source: Source, clip_index: int, **fields: Any) -> dict[str, Any]:
    row = {name: getattr(source, name) for name in Source.__slots__}
    row |= {"key": clip_key(source.identity, clip_index), "clip_index": clip_index}
    empty = {"sha256": "", "first": 0, "num_frames": 0, "begin_s": None, "until_s": None, "reason": "", "detail": ""}
    return row | empty | fields
