"""Frames of the items of a token shard, in their order, as a stream: what a decoding process runs. Never torch."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from vidvq.corpus.fetch import as_video_error, local_file
from vidvq.corpus.inputs import source_of
from vidvq.formats.clip_shard import read_clips
from vidvq.video import VideoError
from vidvq.video.decode import FrameReader, decode_clip, open_reader, sample_timeline, time_stretch
from vidvq.video.geometry import Fit, FrameSize, fit_size
from vidvq.video.probe import Limits, VideoInfo, probe


@dataclass(frozen=True)
class VideoPolicy:
    """Which frames of a video are used, and in what size; as for clips, see ``vidvq shard``.

    Attributes:
        fps: frames per second to sample at, by time; None keeps every frame of the source.
        short_side: pixels to scale the short side to; None keeps the source's size.
        multiple: height and width come out as a multiple of this.
        size: ``[height, width]`` for every video, in the place of ``short_side``.
        fit: where the shape is not the source's: ``crop``, ``pad`` or ``stretch``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    short_side: Annotated[int, Field(ge=8)] | None = 256
    multiple: Annotated[int, Field(ge=1)] = 2
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    fit: Fit = "crop"

    def frame_size(self, info: VideoInfo) -> FrameSize:
        """How the frames of a video are scaled and framed.

        Raises:
            VideoError: ``too_small``.
        """
        return fit_size(*info.shown_size, self.short_side, self.multiple, self.size, self.fit)


@dataclass(frozen=True)
class FrameJob:
    """Items to decode; travels to a process.

    Attributes:
        rows: of the plan, those of one video together. Of clips, ``key``; of raw video those of a source, and
            ``first`` and ``num_frames`` on its sampled timeline.
        clips: the clip shard that holds them; None for raw video.
        policy: of raw video.
        limits: of raw video.
        chunk: frames that are decoded at a time, behind the first frame.
    """

    rows: tuple[dict[str, Any], ...]
    clips: Path | None
    policy: VideoPolicy
    limits: Limits
    chunk: int


@dataclass(frozen=True)
class Stretch:
    """What one item is of; fields as in :class:`vidvq.formats.token_shard.TokenInfo`."""

    source: str
    clip_index: int
    num_frames: int
    height: int
    width: int
    fps: float
    time_base: str
    pts: tuple[int, ...]
    duration: int


@dataclass(frozen=True)
class Piece:
    """One step of a stream of items: what it is of comes first, then frames ``t h w c`` uint8, last a mark or an error.

    The first frames of an item are ``1 + chunk``, later ones ``chunk``, the last as many as there are.
    """

    key: str
    stretch: Stretch | None = None
    frames: np.ndarray | None = None
    error: VideoError | None = None
    done: bool = False


def decode_items(job: FrameJob) -> Iterator[Piece]:
    """Yield the pieces of all items; an item that cannot be decoded ends with its error, and the next one begins."""
    if job.clips is not None:
        yield from _clips(job, job.clips)
        return
    for _, rows in groupby(job.rows, key=lambda row: (row["uri"], row["version"])):
        yield from _video(job, list(rows))


def _clips(job: FrameJob, path: Path) -> Iterator[Piece]:
    wanted = {row["key"] for row in job.rows}
    for key, media, clip in read_clips(path):
        if key not in wanted:
            continue
        try:
            frames = decode_clip(media, key)
            if frames.shape != (clip.num_frames, clip.height, clip.width, 3):
                raise VideoError("decode_error", f"{key} has frames {frames.shape}, its JSON says otherwise")
        except VideoError as error:
            yield Piece(key, error=VideoError(error.reason, f"{clip.source}: {error.detail}"))
            continue
        names = Stretch.__dataclass_fields__
        yield Piece(key, stretch=Stretch(**{name: getattr(clip, name) for name in names}))
        yield Piece(key, frames=frames)
        yield Piece(key, done=True)


def _video(job: FrameJob, rows: list[dict[str, Any]]) -> Iterator[Piece]:
    row = rows[0]
    left = list(rows)
    try:
        with local_file(source_of(row), job.limits.max_bytes, row["sha256"]) as path:
            info = probe(path, job.limits)
            size = job.policy.frame_size(info)
            indices, times = sample_timeline(info, job.policy.fps)
            reader = open_reader(path, info, size, "pyav")
            while left:
                yield from _item(job, left[0], reader, indices, _describe(left[0], info, size, times))
                left.pop(0)
    except GeneratorExit:
        raise
    except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
        failure = as_video_error(error)
        for row in left:
            yield Piece(row["key"], error=VideoError(failure.reason, f"{row['uri']}: {failure.detail}"))


def _item(
    job: FrameJob, row: dict[str, Any], reader: FrameReader, indices: Sequence[int], stretch: Stretch
) -> Iterator[Piece]:
    key, begin, end = row["key"], row["first"], row["first"] + row["num_frames"]
    yield Piece(key, stretch=stretch)
    edges = [begin, *range(begin + 1 + job.chunk, end, job.chunk), end]
    for start, stop in pairwise(edges):
        try:
            frames = reader.read(indices[start:stop])
        except VideoError as error:
            yield Piece(key, error=VideoError(error.reason, f"{row['uri']}: {error.detail}"))
            return
        yield Piece(key, frames=frames)
    yield Piece(key, done=True)


def _describe(row: dict[str, Any], info: VideoInfo, size: FrameSize, times: Sequence[int]) -> Stretch:
    pts, duration, fps = time_stretch(info, times, row["first"], row["num_frames"])
    return Stretch(
        row["uri"], row["clip_index"], len(pts), size.height, size.width, fps, str(info.time_base), pts, duration
    )


def window_of(info: VideoInfo, times: Sequence[int], start_s: float, end_s: float) -> tuple[int, int]:
    """The frames of a sampled timeline that are within seconds from the first frame: first, and one past the last."""
    begin, end = (
        (info.pts[0] + Fraction(second) / info.time_base) if second != float("inf") else second
        for second in (start_s, end_s)
    )
    return bisect_left(times, begin), bisect_left(times, end)
