"""Frames of planned items as a stream, in the order of the plan: what a decoding process runs, without torch."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from vidvq.corpus.fetch import as_video_error, local_file
from vidvq.corpus.source import Source
from vidvq.formats.clip_shard import read_clips
from vidvq.video import VideoError
from vidvq.video.decode import FrameReader, decode_clip, open_reader, sample_timeline, time_stretch
from vidvq.video.geometry import FrameSize
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import Limits, VideoInfo, probe


class Window(Protocol):
    """One item to decode: frames ``first`` to ``first + num_frames`` of the sampled timeline of a video."""

    @property
    def key(self) -> str: ...
    @property
    def source(self) -> Source: ...
    @property
    def sha256(self) -> str: ...
    @property
    def clip_index(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def num_frames(self) -> int: ...


@dataclass(frozen=True)
class ClipFrames:
    """Clips of one clip shard to decode; travels to a process.

    Attributes:
        path: the clip shard, a local file.
        keys: keys of the clips.
    """

    path: Path
    keys: frozenset[str]


@dataclass(frozen=True)
class VideoFrames:
    """Items of videos to decode; travels to a process.

    Attributes:
        windows: the items, those of one video together.
        policy: which frames are used, and in what size.
        limits: caps on any one video.
        chunk: number of frames decoded at a time, after the first frame.
    """

    windows: tuple[Window, ...]
    policy: VideoPolicy
    limits: Limits
    chunk: int


@dataclass(frozen=True)
class Stretch:
    """What an item consists of; fields as in :class:`vidvq.formats.token_shard.TokenInfo`."""

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
    """One message of the decode stream. Per item: a header, then frame chunks ``t h w c`` uint8, then done or an error.

    The first chunk of an item has ``1 + chunk`` frames, later ones ``chunk``, the last as many as are left.
    """

    key: str
    stretch: Stretch | None = None
    frames: np.ndarray | None = None
    error: VideoError | None = None
    done: bool = False


def decode_items(job: ClipFrames | VideoFrames) -> Iterator[Piece]:
    """Yield the pieces of all items; an item that cannot be decoded ends with its error, and the next one begins."""
    if isinstance(job, ClipFrames):
        yield from _clips(job)
        return
    for _, windows in groupby(job.windows, key=lambda window: (window.source.uri, window.source.version)):
        yield from _video(job, list(windows))


def decode_first(job: ClipFrames | VideoFrames) -> np.ndarray | None:
    """The first frames ``t h w c`` uint8 of the first item; None if it cannot be decoded."""
    for piece in decode_items(job):
        if piece.error or piece.frames is not None:
            return piece.frames
    return None


def _clips(job: ClipFrames) -> Iterator[Piece]:
    for key, media, clip in read_clips(job.path):
        if key not in job.keys:
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


def _video(job: VideoFrames, windows: list[Window]) -> Iterator[Piece]:
    left = list(windows)
    source = windows[0].source
    try:
        with local_file(source, job.limits.max_bytes, windows[0].sha256) as path:
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
        for window in left:
            yield Piece(window.key, error=VideoError(failure.reason, f"{source.uri}: {failure.detail}"))


def _item(
    job: VideoFrames, window: Window, reader: FrameReader, indices: Sequence[int], stretch: Stretch
) -> Iterator[Piece]:
    key, begin, end = window.key, window.first, window.first + window.num_frames
    yield Piece(key, stretch=stretch)
    edges = [begin, *range(begin + 1 + job.chunk, end, job.chunk), end]
    for start, stop in pairwise(edges):
        try:
            frames = reader.read(indices[start:stop])
        except VideoError as error:
            yield Piece(key, error=VideoError(error.reason, f"{window.source.uri}: {error.detail}"))
            return
        yield Piece(key, frames=frames)
    yield Piece(key, done=True)


def _describe(window: Window, info: VideoInfo, size: FrameSize, times: Sequence[int]) -> Stretch:
    pts, duration, fps = time_stretch(info, times, window.first, window.num_frames)
    return Stretch(
        window.source.uri, window.clip_index, len(pts), size.height, size.width, fps, str(info.time_base), pts, duration
    )


def window_of(info: VideoInfo, times: Sequence[int], start_s: float, end_s: float) -> tuple[int, int]:
    """The frames of a sampled timeline that are within seconds from the first frame: first, and one past the last."""
    begin, end = (
        (info.pts[0] + Fraction(second) / info.time_base) if second != float("inf") else second
        for second in (start_s, end_s)
    )
    return bisect_left(times, begin), bisect_left(times, end)
