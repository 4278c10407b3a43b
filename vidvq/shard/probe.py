"""The clips of a video, decided before the first one is cut."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from vidvq.corpus.fetch import as_video_error, content_hash, local_file
from vidvq.corpus.source import Source
from vidvq.formats.keys import item_key, video_key
from vidvq.log import counted
from vidvq.shard.config import ClipPolicy, ShardConfig
from vidvq.shard.rows import PlannedClip
from vidvq.shard.shots import find_shots
from vidvq.video.probe import VideoInfo, probe
from vidvq.video.sampling import frames_between, gapless_ranges, overlaps, sample_timeline


def probe_clips(source: Source, config: ShardConfig) -> list[PlannedClip]:
    """The rows of one video: its clips, and rows with a verdict for parts that cannot become clips. Never empty."""
    digest = ""
    try:
        window = source.time_range()
        with local_file(source, config.limits, config.lists.allow_private) as path:
            info = probe(path, config.limits, config.clip.fps)
            digest = content_hash(path)
            if min(info.height, info.width) < config.filters.min_side:
                detail = f"is {info.width}x{info.height}; filters.min_side={config.filters.min_side}"
                return [reject(source, "filtered", "too_small", detail, digest)]
            return _clips(source, digest, config, path, info, window)
    except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
        failure = as_video_error(error)
        return [reject(source, "failed", failure.reason, failure.detail, digest)]


def reject(
    source: Source, verdict: str, reason: str, detail: str, sha256: str = "", clip_index: int = 0
) -> PlannedClip:
    """The row of a video, or of a part of it, that cannot become a clip."""
    return PlannedClip(
        key=item_key(video_key(source.identity), clip_index),
        source=source,
        sha256=sha256,
        clip_index=clip_index,
        verdict=verdict,
        reason=reason,
        detail=detail,
    )


def _clips(
    source: Source, digest: str, config: ShardConfig, path: Path, info: VideoInfo, window: tuple[float, float]
) -> list[PlannedClip]:
    config.clip.frame_size(info)
    _, times = sample_timeline(info, config.clip.fps)
    shots = find_shots(path, info, config.cut) if config.cut.kind == "shots" else [0]
    rows: list[PlannedClip] = []
    longest = 0
    for begin, end in _segments(info, times, gapless_ranges(info, config.clip.fps), shots, window):
        longest = max(longest, end - begin)
        for first, length in _windows(begin, end, config.clip, info):
            if length >= config.clip.min_frames:
                rows.append(_clip(source, digest, len(rows), first, length))
    if info.torn:
        detail = f"the file ends early; {len(rows)} clips were cut from the {info.num_frames} frames that are there"
        rows.append(reject(source, "failed", "truncated", detail, digest, len(rows)))
    elif not rows and not longest:
        detail = f"the range {source.start_s} to {source.end_s} s is not in its {info.num_frames} frames"
        rows.append(reject(source, "failed", "bad_range", detail, digest))
    elif not rows and config.clip.encoding == "copy" and longest >= config.clip.min_frames:
        detail = f"has no frames from keyframe to keyframe that fit in clip.num_frames={config.clip.num_frames}"
        rows.append(reject(source, "failed", "not_on_keyframes", detail, digest))
    elif not rows:
        where = "" if source.identity == source.uri else f"from {source.start_s} to {source.end_s} s "
        where += "its longest shot " if len(shots) > 1 else ""
        detail = f"{where}has {counted(longest, 'frames')}; a clip needs clip.min_frames={config.clip.min_frames}"
        rows.append(reject(source, "filtered", "too_short", detail, digest))
    return rows


def _clip(source: Source, digest: str, clip_index: int, first: int, num_frames: int) -> PlannedClip:
    return PlannedClip(
        key=item_key(video_key(source.identity), clip_index),
        source=source,
        sha256=digest,
        clip_index=clip_index,
        first=first,
        num_frames=num_frames,
    )


def _windows(begin: int, end: int, policy: ClipPolicy, info: VideoInfo) -> Iterator[tuple[int, int]]:
    """Yield the first frame and length of each clip from frame ``begin`` to ``end`` (exclusive) of the timeline."""
    if policy.encoding != "copy":
        for first in range(begin, end, policy.stride or policy.num_frames):
            yield first, min(policy.num_frames, end - first)
        return
    # Whole groups of pictures, as many as fit into a clip. The last group of a video is not followed by a keyframe.
    edges = [key for key in info.keyframes if begin <= key < end]
    edges += [end] if end == info.num_frames or end in info.keyframes else []
    start = 0
    while start < len(edges) - 1:
        stop = bisect_right(edges, edges[start] + policy.num_frames) - 1
        if stop > start:
            yield edges[start], edges[stop] - edges[start]
        start = max(stop, start + 1)


def _segments(
    info: VideoInfo,
    times: Sequence[int],
    ranges: Sequence[tuple[int, int]],
    shots: list[int],
    window: tuple[float, float],
) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the sampled timeline that clips may be cut from: each shot, without gaps, in the window."""
    begin, end = frames_between(info, times, *window)
    edges = [*(bisect_left(times, info.pts[shot]) for shot in shots), len(times)]
    for start, stop in pairwise(edges):
        yield from overlaps(ranges, max(start, begin), min(stop, end))
