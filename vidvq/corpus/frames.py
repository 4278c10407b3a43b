"""Frames of planned items as a stream of messages, in the order of the plan.

Runs in the decoding processes of `vidvq tokenize`. It is in this package so that they do not import torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np

from vidvq.corpus.fetch import as_video_error, content_hash, local_file
from vidvq.corpus.source import Source
from vidvq.formats.clip_shard import ClipInfo, read_clips
from vidvq.video import VideoError
from vidvq.video.decode import FrameReader, decode_clip, decoders_for, first_decoded, open_reader
from vidvq.video.geometry import FrameSize
from vidvq.video.limits import Limits
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import DecoderName, VideoInfo, probe
from vidvq.video.sampling import clip_times, frames_between, gapless_ranges, overlaps, sample_timeline

# Clips, or frames of a video (at least), that one process decodes before it is another one's turn. A turn within a
# video starts with a seek, so it begins where few frames since the keyframe before it are decoded twice.
TURN_CLIPS, TURN_FRAMES = 1, 512


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
        share: index of the process, and number of processes, which decode the clips in turns.
    """

    path: Path
    keys: frozenset[str]
    share: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class VideoFrames:
    """Items of videos to decode; sent to a decoding process.

    Attributes:
        windows: items, grouped by video.
        policy: sampling and size of the frames.
        limits: caps on a single video.
        chunk: frames per message, after the first frame of an item.
        allow_private: whether URLs may lead to private addresses.
        share: index of the process, and number of processes, which decode the items in turns.
        decoder: decoder to prefer.
    """

    windows: tuple[Window, ...]
    policy: VideoPolicy
    limits: Limits
    chunk: int
    allow_private: bool = False
    share: tuple[int, int] = (0, 1)
    decoder: DecoderName = "pyav"


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

    Info, frames and end of a clip are one message: each costs the encoding process time in which it could feed a GPU.

    Attributes:
        key: key of the item; "" in a message that only ends a turn.
        info: the item, in its first message.
        frames: ``t h w c`` uint8: ``1 + chunk`` frames in the first chunk of an item, ``chunk`` in later ones, the
            remainder in the last; a clip as a whole.
        error: why the item cannot be decoded; its last message.
        done: True in the last message of a decoded item.
        turn_ends: whether the next messages come from the next process.
        busy_s: time that the process spent on this message (seconds).
        from_nvdec: whether NVDEC decoded the frames.
    """

    key: str
    info: ItemInfo | None = None
    frames: np.ndarray | None = None
    error: VideoError | None = None
    done: bool = False
    turn_ends: bool = False
    busy_s: float = 0.0
    from_nvdec: bool = False


# The last video that this process probed, by its identity.
_last_probed: dict[tuple[str, str, str, Limits, float | None], VideoInfo] = {}
# The reader of the last video that this process opened, by all that its frames depend on.
_last_opened: dict[tuple[Path, str, FrameSize, DecoderName], FrameReader] = {}
_TURN_ENDS = DecodeMessage("", turn_ends=True)


@dataclass(frozen=True)
class _Part:
    """Frames ``start`` to ``stop`` of a window, counted from its first."""

    window: Window
    start: int
    stop: int


@dataclass(frozen=True)
class DecodedClip:
    """A clip with its frames, or with the error that decoding it ended in.

    Attributes:
        info: its JSON.
        frames: ``t h w c`` uint8; None after an error.
        error: why there are no frames.
    """

    key: str
    info: ClipInfo
    frames: np.ndarray | None = None
    error: VideoError | None = None


def decode_clips(job: ClipFrames) -> Iterator[DecodedClip]:
    """Yield the clips of a shard, in the order of the shard; of several processes, those of its turns."""
    own, processes = job.share
    index = -1
    for key, media, info in read_clips(job.path):
        if key not in job.keys:
            continue
        index += 1
        if index // TURN_CLIPS % processes != own:
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
    """Yield the messages of all items. An item that cannot be decoded ends with an error; the next item follows.

    One of several processes yields the messages of its turns, each of which ends with ``turn_ends``.
    """
    messages = _clips(job) if isinstance(job, ClipFrames) else _videos(job)
    started = monotonic()
    for message in messages:
        yield replace(message, busy_s=monotonic() - started)
        started = monotonic()


def item_frames(messages: Iterator[DecodeMessage]) -> Iterator[np.ndarray]:
    """Yield the frames ``t h w c`` uint8 of the item that the next message is of, up to its last message.

    Raises:
        VideoError: the item cannot be decoded.
    """
    for message in messages:
        if message.error:
            raise message.error
        if message.frames is not None:
            yield message.frames
        if message.done:
            return


def decode_first(job: ClipFrames | VideoFrames) -> np.ndarray | None:
    """The first frames ``t h w c`` uint8 of the first item; None if it cannot be decoded."""
    for message in decode_items(job):
        if message.error or message.frames is not None:
            return message.frames
    return None


def _clips(job: ClipFrames) -> Iterator[DecodeMessage]:
    names = ItemInfo.__dataclass_fields__
    for count, clip in enumerate(decode_clips(job), 1):
        # A turn cut short is the last one of all.
        turn_ends = count % TURN_CLIPS == 0 and job.share[1] > 1
        if clip.error:
            yield DecodeMessage(clip.key, error=clip.error, turn_ends=turn_ends)
        else:
            info = ItemInfo(**{name: getattr(clip.info, name) for name in names})
            yield DecodeMessage(clip.key, info, clip.frames, done=True, turn_ends=turn_ends)


def _videos(job: VideoFrames) -> Iterator[DecodeMessage]:
    own, processes = job.share
    # A URL without a version may have changed from one of its ranges to the next, while they were planned.
    videos = groupby(job.windows, key=lambda window: (window.source.uri, window.source.version, window.sha256))
    for number, (_, windows) in enumerate(videos):
        rows = list(windows)
        count = len(_turns(rows, job.chunk)) if processes > 1 else 1
        # The process after the one that began the video before takes the first turn. Whole rounds of all processes
        # follow, with empty turns at the end, so that the next video begins with the next process.
        rounds = -(-(count - 1) // processes)
        mine = range((own - number) % processes, 1 + rounds * processes, processes)
        yield from _video(job, rows, count, mine) if mine.start < count else [_TURN_ENDS] * len(mine)


def _turns(windows: list[Window], chunk: int, seek_to: Callable[[int], int] = int) -> list[list[_Part]]:
    """Split the windows of one video into turns of at least ``TURN_FRAMES``; long windows are cut between messages.

    Args:
        windows: the windows.
        chunk: frames per message.
        seek_to: frame at which decoding starts in order to reach a frame. A turn begins only where it has changed since
            the message before, so that little is decoded twice. By default it always has, which gives the most turns.
    """
    turns: list[list[_Part]] = []
    left, sought = 0, -1
    for window in windows:
        length = window.num_frames
        edges = [0, *(range(1 + chunk, length, chunk) if length > 2 * TURN_FRAMES else ()), length]
        for start, stop in pairwise(edges):
            before, sought = sought, seek_to(window.first + start)
            if left <= 0 and before != sought:
                turns.append([])
                left = TURN_FRAMES
            turn = turns[-1]
            if start and turn:
                turn[-1] = replace(turn[-1], stop=stop)
            else:
                turn.append(_Part(window, start, stop))
            left -= stop - start
    return turns


def _video(job: VideoFrames, windows: list[Window], count: int, mine: range) -> Iterator[DecodeMessage]:
    """Yield the messages of the turns ``mine`` of a video that has up to ``count`` of them."""
    # Until its turns are known, a process answers for the whole video.
    left = [[_Part(window, 0, window.num_frames) for window in windows], *([] for _ in mine[1:])]
    end = [_TURN_ENDS] if job.share[1] > 1 else []
    window = windows[0]
    source = window.source
    try:
        with local_file(source, job.limits, job.allow_private, window.sha256) as path:
            info = _probe(path, window, job.limits, job.policy.fps)
            size = job.policy.frame_size(info)
            indices, times = sample_timeline(info, job.policy.fps)
            if count > 1:
                # Every process computes the same turns, from the same file.
                turns = _turns(windows, job.chunk, lambda frame: first_decoded(info, indices[frame]))
                left = [turns[index] if index < len(turns) else [] for index in mine]
            reader = _open(path, window, info, size, decoders_for(info, job.decoder)[0])
            while left:
                while left[0]:
                    part = left[0][0]
                    item = None if part.start else _describe(part.window, info, size, times)
                    yield from _item(job, part, item, reader, indices)
                    left[0].pop(0)
                left.pop(0)
                yield from end
    except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
        _last_opened.clear()
        failure = as_video_error(error)
        for turn in left:
            for part in turn:
                detail = f"{source.uri}: {failure.detail}"
                yield DecodeMessage(part.window.key, error=VideoError(failure.reason, detail))
            yield from end


def _probe(path: Path, window: Window, limits: Limits, fps: float | None) -> VideoInfo:
    """Probe a video, unless it is the last one that this process probed.

    Probing reads the whole file, and a long video is in many shards, one after another.
    """
    source = window.source
    identity = (source.uri, source.version, window.sha256, limits, fps)
    if not (source.version or window.sha256):
        return probe(path, limits, fps)
    if identity not in _last_probed:
        info = probe(path, limits, fps)
        _last_probed.clear()
        _last_probed[identity] = info
    return _last_probed[identity]


def _open(path: Path, window: Window, info: VideoInfo, size: FrameSize, decoder: DecoderName) -> FrameReader:
    """Open a video, unless it is the last one that this process opened.

    The next shard often begins where this one ends, which may be long after a keyframe.
    """
    source = window.source
    identity = (path, source.version, size, decoder)
    if identity not in _last_opened:
        _last_opened.clear()
        reader = open_reader(path, info, size, decoder)
        # A temporary copy is deleted, and an open file would keep its space.
        if not source.version or str(path) != source.uri:
            return reader
        _last_opened[identity] = reader
    return _last_opened[identity]


def _item(
    job: VideoFrames, part: _Part, info: ItemInfo | None, reader: FrameReader, indices: Sequence[int]
) -> Iterator[DecodeMessage]:
    window, key = part.window, part.window.key
    begin, end = window.first + part.start, window.first + part.stop
    edges = [begin, *range(begin + job.chunk + (part.start == 0), end, job.chunk), end]
    for start, stop in pairwise(edges):
        try:
            frames = reader.read(indices[start:stop])
        except VideoError as error:
            # After a failure, a reader may not read what a new one would.
            _last_opened.clear()
            failure = as_video_error(error)
            yield DecodeMessage(key, error=VideoError(failure.reason, f"{window.source.uri}: {failure.detail}"))
            return
        done = stop == window.first + window.num_frames
        yield DecodeMessage(key, info, frames, done=done, from_nvdec=reader.decoder == "nvdec")
        info = None


def _describe(window: Window, info: VideoInfo, size: FrameSize, times: Sequence[int]) -> ItemInfo:
    pts, duration, fps = clip_times(info, times, window.first, window.num_frames)
    return ItemInfo(
        window.source.uri, window.clip_index, len(pts), size.height, size.width, fps, str(info.time_base), pts, duration
    )


class SampledVideo(NamedTuple):
    """The frames of a video that a stage may use.

    Attributes:
        sha256: SHA-256 of the file (hex).
        times: presentation times of the sampled timeline (ticks).
        ranges: ranges of it that are in the time range of the source, without gaps.
    """

    info: VideoInfo
    sha256: str
    times: Sequence[int]
    ranges: list[tuple[int, int]]


def sample_video(source: Source, policy: VideoPolicy, limits: Limits, allow_private: bool) -> SampledVideo:
    """Probe a video and sample its timeline.

    Raises:
        VideoError: the video cannot be fetched or used.
        OSError: the disk is full.
    """
    window = source.time_range()
    with local_file(source, limits, allow_private) as path:
        info = probe(path, limits, policy.fps)
        digest = content_hash(path)
    policy.frame_size(info)
    _, times = sample_timeline(info, policy.fps)
    inside = overlaps(gapless_ranges(info, policy.fps), *frames_between(info, times, *window))
    return SampledVideo(info, digest, times, list(inside))
