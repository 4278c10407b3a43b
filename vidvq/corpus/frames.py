"""Frames of planned items as a stream of messages, in the order of the plan.

Runs in the decoding processes of `vidvq tokenize`. It is in this package so that they do not import torch.
"""

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
from vidvq.formats.clip_shard import ClipInfo, read_clips
from vidvq.video import VideoError
from vidvq.video.decode import FrameReader, decode_clip, open_reader
from vidvq.video.geometry import FrameSize
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import Limits, VideoInfo, probe
from vidvq.video.sampling import clip_times, sample_timeline


class Window(Protocol):
    """One item to decode: frames ``first`` to ``first + num_frames`` of the sampled timeline of a video.

    Attributes are those of :class:`vidvq.jobs.rows.VideoRow`.
    """

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
    """Clips of one clip shard to decode; sent to a decoding process.

    Attributes:
        path: local file of the clip shard.
        keys: keys of the clips.
    """

    path: Path
    keys: frozenset[str]


@dataclass(frozen=True)
class VideoFrames:
    """Items of videos to decode; sent to a decoding process.

    Attributes:
        windows: items, grouped by video.
        policy: sampling and size of the frames.
        limits: caps on a single video.
        chunk: frames per message, after the first frame of an item.
        allow_private: whether URLs may lead to private addresses.
    """

    windows: tuple[Window, ...]
    policy: VideoPolicy
    limits: Limits
    chunk: int
    allow_private: bool = False


@dataclass(frozen=True)
class ItemInfo:
    """Source, size and times of an item; fields as in :class:`vidvq.formats.token_shard.TokenInfo`."""

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
class DecodeMessage:
    """One message of the decode stream. Per item: its info, then frame chunks, then ``done`` or an error.

    Attributes:
        key: key of the item.
        info: the item, in its first message.
        frames: ``t h w c`` uint8: ``1 + chunk`` frames in the first chunk of an item, ``chunk`` in later ones, the
            remainder in the last.
        error: why the item cannot be decoded; its last message.
        done: True in the last message of a decoded item.
    """

    key: str
    info: ItemInfo | None = None
    frames: np.ndarray | None = None
    error: VideoError | None = None
    done: bool = False


@dataclass(frozen=True)
class DecodedClip:
    """A clip with its frames, or with the error that decoding it ended in.

    Attributes:
        key: key of the clip.
        info: its JSON.
        frames: ``t h w c`` uint8; None after an error.
        error: why there are no frames.
    """

    key: str
    info: ClipInfo
    frames: np.ndarray | None = None
    error: VideoError | None = None


def decode_clips(job: ClipFrames) -> Iterator[DecodedClip]:
    """Yield the clips of a shard, in the order of the shard."""
    for key, media, info in read_clips(job.path):
        if key not in job.keys:
            continue
        try:
            frames = decode_clip(media, key, (info.num_frames, info.height, info.width))
            if frames.shape != (info.num_frames, info.height, info.width, 3):
                raise VideoError("decode_error", f"{key} has frames {frames.shape}, its JSON says otherwise")
        except VideoError as error:
            yield DecodedClip(key, info, error=VideoError(error.reason, f"{info.source}: {error.detail}"))
        else:
            yield DecodedClip(key, info, frames)


def decode_items(job: ClipFrames | VideoFrames) -> Iterator[DecodeMessage]:
    """Yield the messages of all items. An item that cannot be decoded ends with an error; the next item follows."""
    if isinstance(job, ClipFrames):
        yield from _clips(job)
        return
    for _, windows in groupby(job.windows, key=lambda window: (window.source.uri, window.source.version)):
        yield from _video(job, list(windows))


def decode_first(job: ClipFrames | VideoFrames) -> np.ndarray | None:
    """The first frames ``t h w c`` uint8 of the first item; None if it cannot be decoded."""
    for message in decode_items(job):
        if message.error or message.frames is not None:
            return message.frames
    return None


def _clips(job: ClipFrames) -> Iterator[DecodeMessage]:
    names = ItemInfo.__dataclass_fields__
    for clip in decode_clips(job):
        if clip.error:
            yield DecodeMessage(clip.key, error=clip.error)
            continue
        yield DecodeMessage(clip.key, info=ItemInfo(**{name: getattr(clip.info, name) for name in names}))
        yield DecodeMessage(clip.key, frames=clip.frames)
        yield DecodeMessage(clip.key, done=True)


def _video(job: VideoFrames, windows: list[Window]) -> Iterator[DecodeMessage]:
    left = list(windows)
    source = windows[0].source
    try:
        limits = job.limits
        with local_file(
            source, limits.max_bytes, windows[0].sha256, job.allow_private, limits.download_deadline_s
        ) as path:
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
            yield DecodeMessage(window.key, error=VideoError(failure.reason, f"{source.uri}: {failure.detail}"))


def _item(
    job: VideoFrames, window: Window, reader: FrameReader, indices: Sequence[int], info: ItemInfo
) -> Iterator[DecodeMessage]:
    key, begin, end = window.key, window.first, window.first + window.num_frames
    yield DecodeMessage(key, info=info)
    edges = [begin, *range(begin + 1 + job.chunk, end, job.chunk), end]
    for start, stop in pairwise(edges):
        try:
            frames = reader.read(indices[start:stop])
        except VideoError as error:
            yield DecodeMessage(key, error=VideoError(error.reason, f"{window.source.uri}: {error.detail}"))
            return
        yield DecodeMessage(key, frames=frames)
    yield DecodeMessage(key, done=True)


def _describe(window: Window, info: VideoInfo, size: FrameSize, times: Sequence[int]) -> ItemInfo:
    pts, duration, fps = clip_times(info, times, window.first, window.num_frames)
    return ItemInfo(
        window.source.uri, window.clip_index, len(pts), size.height, size.width, fps, str(info.time_base), pts, duration
    )


def frame_range(info: VideoInfo, times: Sequence[int], start_s: float, end_s: float) -> tuple[int, int]:
    """The frames of a sampled timeline in a time range.

    Args:
        info: the video.
        times: presentation times of the sampled timeline (ticks).
        start_s: start of the range, from the first frame (seconds).
        end_s: end of the range, exclusive (seconds); may be infinite.

    Returns:
        Index of the first frame, and of the first frame after the range.
    """
    begin, end = (
        (info.pts[0] + Fraction(second) / info.time_base) if second != float("inf") else second
        for second in (start_s, end_s)
    )
    return bisect_left(times, begin), bisect_left(times, end)
