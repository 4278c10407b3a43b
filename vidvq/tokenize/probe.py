"""The token samples of a raw video: one for each restart of the stream, decided before any frame is encoded."""

from collections.abc import Iterator
from dataclasses import replace

from vidvq.corpus.fetch import as_video_error
from vidvq.corpus.frames import sample_video
from vidvq.corpus.source import Source
from vidvq.formats.keys import item_key, video_key
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.rows import PlannedSample


def probe_samples(source: Source, config: TokenizeConfig) -> list[PlannedSample]:
    """The rows of one video: its samples, and rows with a reason for parts that cannot become samples. Never empty."""
    try:
        info, digest, times, ranges = sample_video(source, config.video, config.limits, config.lists.allow_private)
    except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
        failure = as_video_error(error)
        return [reject(source, failure.reason, failure.detail)]
    rows: list[PlannedSample] = []
    for first, length in _windows(ranges, config.gop_frames):
        if first + length < len(times):
            after = times[first + length]
        else:
            after = info.end if times[-1] == info.pts[-1] else times[-1] + info.tick_per_frame
        rows.append(
            replace(
                reject(source, "", "", len(rows)),
                sha256=digest,
                first=first,
                num_frames=length,
                begin_s=float((times[first] - info.pts[0]) * info.time_base),
                until_s=float((after - info.pts[0]) * info.time_base),
            )
        )
    if not rows:
        detail = f"the range {source.start_s} to {source.end_s} s is not in its {info.num_frames} frames"
        rows.append(reject(source, "bad_range", detail))
    elif info.torn:
        detail = f"the file ends early; its {info.num_frames} frames are used"
        rows.append(reject(source, "truncated", detail, len(rows)))
    return rows


def _windows(ranges: list[tuple[int, int]], gop_frames: int | None) -> Iterator[tuple[int, int]]:
    """Yield the first frame and the length of each sample: the stream restarts after every gap."""
    for start, stop in ranges:
        for first in range(start, stop, gop_frames or stop - start):
            yield first, min(gop_frames or stop - start, stop - first)


def reject(source: Source, reason: str, detail: str, clip_index: int = 0) -> PlannedSample:
    """The row of a video, or of a part of it, that cannot become a sample. Without a reason, a row to complete."""
    key = item_key(video_key(source.identity), clip_index)
    return PlannedSample(key=key, source=source, clip_index=clip_index, reason=reason, detail=detail)
