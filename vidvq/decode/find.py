"""Look-up of token samples by key or by source and time, without reading codes."""

import os
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import inf
from pathlib import Path

import pyarrow as pa

from vidvq.decode.config import VideoInterval
from vidvq.errors import UsageError
from vidvq.formats.arrow import compute
from vidvq.formats.plan import read_plan
from vidvq.formats.token_index import suggest_nearest
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import TokenInfo

# Plan times are floats: widen the interval slightly, then check the exact times in the JSON.
_SLACK_S = 0.001


@dataclass(frozen=True)
class FoundClip:
    """A token sample that overlaps an interval.

    Attributes:
        info: content of its JSON.
        num_frames: number of its frames in the interval.
    """

    location: TokenLocation
    info: TokenInfo
    num_frames: int


def find_key(known: list[TokenLocation], key: str, tokens: Path) -> TokenLocation:
    """Find the sample with a key.

    Args:
        known: all samples of ``tokens``.
        tokens: directory or shard that was indexed, for the message.

    Raises:
        UsageError: no sample has this key.
    """
    for location in known:
        if location.key == key:
            return location
    near = suggest_nearest(key, [location.key for location in known])
    raise UsageError(f"key={key} is not in {tokens}{near}; `vidvq inspect` lists the keys of a shard")


def find_clips(tokens: Path, known: list[TokenLocation], interval: VideoInterval) -> list[FoundClip]:
    """Find the samples that overlap an interval of a video, sorted by time.

    Raises:
        UsageError: the video is not in the tokens, none of its frames is in the interval, or two samples overlap.
    """
    # Plans record local videos by their absolute path.
    names = {interval.source, os.path.normpath(Path(interval.source).absolute())}
    wanted = _planned_keys(tokens, known, interval, names)
    infos: list[tuple[TokenLocation, TokenInfo]] = []
    sources: set[str] = set()
    for location in known:
        if wanted is None or location.key in wanted:
            info = location.read_info()
            sources.add(info.source)
            if info.source in names:
                infos.append((location, info))
    if not infos:
        near = suggest_nearest(interval.source, sorted(sources)) or f"; it has {min(sources, default='no sample')}"
        raise UsageError(f"source={interval.source} is not in {tokens}{near}")
    infos.sort(key=lambda pair: frame_times(pair[1])[0])
    found: list[FoundClip] = []
    before: Fraction | None = None
    for location, info in infos:
        times = frame_times(info)
        count = sum(interval.overlaps(*time) for time in times)
        if not count:
            continue
        if before is not None and times[0][0] <= before:
            raise UsageError(
                f"{location.key} overlaps the clip before it; decode overlapping clips one by one with --key"
            )
        before = times[-1][0]
        found.append(FoundClip(location, info, count))
    if not found:
        first, last = frame_times(infos[0][1])[0][0], max(frame_times(info)[-1][1] for _, info in infos)
        raise UsageError(
            f"from={_seconds(interval.start)} to={_seconds(interval.end)} has no frame of "
            f"{interval.source}; its tokens cover {float(first):g} to {float(last):g} seconds"
        )
    return found


def frame_times(info: TokenInfo) -> list[tuple[Fraction, Fraction]]:
    """Start and end of each frame (seconds on the source's timeline)."""
    tick = info.seconds_per_tick
    end = info.pts[0] + info.duration
    last = max(end, info.pts[-1] + 1)
    return [(start * tick, after * tick) for start, after in pairwise((*info.pts, last))]


def _planned_keys(
    tokens: Path, known: list[TokenLocation], interval: VideoInterval, names: set[str]
) -> set[str] | None:
    """Keys near the interval by the plan; None if the plan has no clip times, so that every JSON must be read."""
    folder = tokens.parent if tokens.is_file() else tokens
    table = read_plan(folder).table if (folder / "plan.json").is_file() else None
    if table is None or "begin_s" not in table.column_names:
        return None
    table = table.select(["key", "uri", "begin_s", "until_s"])
    planned = table.filter(compute.is_in(table["uri"], value_set=pa.array(sorted(names))))
    rows = {row["key"]: row for row in planned.to_pylist()}
    first = next((location for location in known if location.key in rows), None)
    if first is None:
        return None
    # Plan times count from the video's first frame, the interval's from the zero of its timeline.
    zero = float(frame_times(first.read_info())[0][0]) - rows[first.key]["begin_s"]
    from_s = -inf if interval.start is None else float(interval.start) - zero - _SLACK_S
    to_s = inf if interval.end is None else float(interval.end) - zero + _SLACK_S
    near = {key for key, row in rows.items() if row["until_s"] is not None and row["until_s"] > from_s}
    # If no clip is near, read all of them: the error message gives the range that the tokens cover.
    return {key for key in near if rows[key]["begin_s"] < to_s} or set(rows)


def _seconds(edge: Fraction | None) -> str:
    return "-" if edge is None else f"{float(edge):g}"
