"""What is in a video, counted rather than believed: the container's own frame count is never used.

Where packets can be trusted they tell the timeline; reading them costs a fraction of decoding. Where they cannot, one
pass of the decoder tells it: which frames there are, in which order, at which times.
"""

import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from av.video.frame import VideoFrame

from vidvq.errors import UsageError
from vidvq.video.colour import is_plain, refuse_unsupported
from vidvq.video.container import VideoError
from vidvq.video.ending import end_of_only_stream, is_torn
from vidvq.video.geometry import orientation
from vidvq.video.packets import LONGEST_PAUSE_S, RECORDED, Packets
from vidvq.video.stream import decode, demuxer, open_video, video_stream
from vidvq.video.timeline import continuous, usual_step

DecoderName = Literal["decord", "pyav"]

# Pixels so many times wider than high, or the other way round, are a mistake in the file.
_ODD_ASPECT = 10
# Demuxers that find the keyframe before a time; others are read from the start.
_SEEKABLE = {"mov", "matroska", "avi"}
# A last frame that is shown so many times as long as usual is held.
_HELD_STEPS = 2


@dataclass(frozen=True)
class Limits:
    """Caps on a single video, each checked before memory is allocated for it; beyond one, the video is a failed item.

    Attributes:
        max_pixels: maximum width times height of a frame (pixels).
        max_frames: maximum number of frames.
        max_bytes: maximum size of the file (bytes).
        deadline_s: time limit (seconds): for the decode of one source within one shard by `vidvq shard`, for each step
            of the decode by `vidvq tokenize`. The decoding process is killed when it is exceeded.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    max_pixels: int = 8192 * 4320
    max_frames: int = 1_080_000
    max_bytes: int = 64 << 30
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise UsageError(f"{name}={value} must be more than 0")


@dataclass(frozen=True)
class VideoInfo:
    """A video's timeline and format.

    Attributes:
        container: libav demuxer.
        codec: libav's name of the codec, ``h264``.
        height, width: coded pixels.
        time_base: seconds per tick.
        pts: presentation time of every frame in ticks, strictly ascending. Packed, since an hour has a hundred
            thousand.
        torn: the file ends before its container's index or length says, so its tail is missing.
        open_groups: frames are stored behind a keyframe and shown before it.
        keyframes: indices of the frames that decode alone with all that follow them, ascending.
        quarter_turns: counter-clockwise turns that show the picture upright, from the display matrix.
        mirrored: the picture is to be mirrored left to right after it is turned.
        pixel_aspect: width of a pixel over its height.
        is_interlaced: its first frame holds two fields, and is not shown as it is stored.
        is_plain: 8-bit, upright, not interlaced, and of BT.601 in limited range or untagged.
        packets: the packet of the stream that each frame came from, where a pass of the decoder told the timeline;
            None where packets did.
        retimed: ``pts`` differ from the times in the file, which start again, jump or contradict one another.
        held: ticks that the last frame stays on screen where that is far longer than usual; else 0.
        max_frames: the most frames that a timeline sampled from this one may have.
    """

    container: str
    codec: str
    height: int
    width: int
    time_base: Fraction
    pts: Sequence[int]
    torn: bool
    open_groups: bool
    keyframes: tuple[int, ...] = ()
    quarter_turns: int = 0
    mirrored: bool = False
    pixel_aspect: Fraction = Fraction(1)
    is_interlaced: bool = False
    is_plain: bool = True
    packets: Sequence[int] | None = None
    retimed: bool = False
    held: int = 0
    max_frames: int = Limits.max_frames

    @property
    def shown_size(self) -> tuple[Fraction, Fraction]:
        """``(height, width)`` as it is shown: upright, in square pixels."""
        height, width = Fraction(self.height), self.width * self.pixel_aspect
        return (width, height) if self.quarter_turns % 2 else (height, width)

    @property
    def finds_keyframes(self) -> bool:
        """Whether its demuxer finds the keyframe before a time; other files are read from the start."""
        return demuxer(self.container) in _SEEKABLE

    @property
    def num_frames(self) -> int:
        """Frames found in the file."""
        return len(self.pts)

    @property
    def tick_per_frame(self) -> int:
        """The usual ticks from one frame to the next (the median); of a single frame, how long it is shown."""
        steps = np.sort(np.diff(np.asarray(self.pts, dtype=np.int64)))
        return max(int(steps[len(steps) // 2]), 1) if len(steps) else max(self.held, 1)

    @property
    def end(self) -> int:
        """Tick at which the last frame goes off the screen."""
        return self.pts[-1] + (self.held or self.tick_per_frame)

    @property
    def fps(self) -> float:
        """Mean frames per second over the whole video."""
        ticks = self.pts[-1] - self.pts[0] + self.tick_per_frame
        return float(self.num_frames / (ticks * self.time_base))


def probe(path: Path, limits: Limits) -> VideoInfo:
    """Read a video's packets and return its timeline; where they cannot be trusted, decode it once.

    Raises:
        VideoError: unreadable, over a limit, or without frames.
    """
    deadline = time.monotonic() + limits.deadline_s
    size = path.stat().st_size if path.exists() else 0
    if size > limits.max_bytes:
        raise VideoError("too_large", f"has {size} bytes; the cap is limits.max_bytes={limits.max_bytes}")
    with open_video(path) as container:
        stream = video_stream(container)
        if stream.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise VideoError("unknown_codec", f"its {container.format.name} stream has a codec that is not known")
        height, width = stream.codec_context.height, stream.codec_context.width
        if height < 1 or width < 1:
            raise VideoError("unreadable", f"its video stream is {width}x{height} pixels")
        if height * width > limits.max_pixels:
            raise VideoError("too_large", f"is {width}x{height}; the cap is limits.max_pixels={limits.max_pixels}")
        if stream.time_base is None:
            raise VideoError("unreadable", "its video stream has no time base")
        packets = Packets.read(container, stream, limits.max_frames)
        aspect = stream.sample_aspect_ratio
        info = VideoInfo(
            container=container.format.name,
            codec=stream.codec_context.name,
            height=height,
            width=width,
            time_base=Fraction(stream.time_base),
            pts=(),
            torn=is_torn(path, container, stream),
            open_groups=packets.open_groups,
            pixel_aspect=Fraction(aspect) if aspect and _ODD_ASPECT > aspect > 1 / _ODD_ASPECT else Fraction(1),
            max_frames=limits.max_frames,
        )
        trusted = packets.are_trusted(container, stream)
        end = end_of_only_stream(container, info.time_base)
    # Not before the container is closed: libav keeps an index of the whole file for each that is open.
    if trusted:
        info = replace(info, pts=packets.timeline(), keyframes=packets.keyframes())
        return _finished(info, _first_frame(path), packets.last_ends, end)
    clock = packets.timeline() if packets.are_in_order else None
    info, first = _confirmed(path, info, limits, deadline, clock)
    return _finished(info, first, None, None)


def _finished(info: VideoInfo, first: VideoFrame | None, *ends: int | None) -> VideoInfo:
    """With what the first frame tells, and how long the last one is held."""
    shown = max((end for end in ends if end is not None), default=0) - info.pts[-1]
    step = info.tick_per_frame if info.num_frames > 1 else 0
    info = replace(info, held=info.held or (shown if shown > 0 and shown >= _HELD_STEPS * step else 0))
    if first is None:
        return replace(info, is_plain=False)
    turns, mirrored = orientation(_display_matrix(first))
    return replace(
        info,
        quarter_turns=turns,
        mirrored=mirrored,
        is_interlaced=first.interlaced_frame,
        is_plain=is_plain(first) and not turns and not mirrored,
    )


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    return tuple(np.frombuffer(bytes(data), np.int32).tolist()) if data is not None else None


def _first_frame(path: Path) -> VideoFrame | None:
    """What tells of rotation and colour; None where it cannot be decoded, which is for the reader to tell."""
    with open_video(path) as container:
        found = next(decode(container, video_stream(container)), None)
    if found is None or found.frame is None:
        return None
    refuse_unsupported(found.frame)
    return found.frame


def _confirmed(
    path: Path, info: VideoInfo, limits: Limits, deadline: float, clock: "array[int] | None"
) -> tuple[VideoInfo, VideoFrame]:
    """The timeline that the decoder puts out, with its first frame.

    Args:
        path, limits: as for :func:`probe`.
        info: what is known.
        deadline: of the monotonic clock.
        clock: times of the packets where they are in order in the file. If frames are shown in another order, those
            were the times of decoding, and frames are shown at them one by one.

    Raises:
        VideoError: ``too_large``, ``too_slow``, or nothing can be decoded.
    """
    times: list[int | None] = []
    decoding_times: list[int | None] = []
    packets = array("q")
    keys: list[int] = []
    first: VideoFrame | None = None
    held = 0
    with open_video(path) as container:
        stream = video_stream(container)
        for decoded in decode(container, stream, in_order=True):
            if first is None and decoded.frame is not None:
                first = decoded.frame
                refuse_unsupported(first)
            times.append(decoded.pts)
            decoding_times.append(decoded.dts)
            packets.append(decoded.packet)
            if decoded.frame is not None:
                held = decoded.frame.duration
                if decoded.frame.key_frame:
                    keys.append(len(packets) - 1)
            if len(times) > limits.max_frames:
                raise VideoError("too_large", f"has over limits.max_frames={limits.max_frames} frames")
            if time.monotonic() > deadline:
                raise VideoError("too_slow", f"takes over limits.deadline_s={limits.deadline_s:g} to decode")
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    if first is None:
        raise VideoError("decode_error", "not one frame of it can be decoded")
    in_order = all(a is not None and b is not None and a < b for a, b in pairwise(times))
    if clock is not None and not in_order:
        times = list(clock) if len(clock) == len(times) else decoding_times
    elif times.count(None) > len(times) // 2:
        times = decoding_times
    step = usual_step(times) or max(round(1 / (rate * info.time_base)), 1)
    longest = int(LONGEST_PAUSE_S / info.time_base) if demuxer(info.container) in RECORDED else None
    pts, retimed = continuous(times, step, longest)
    # Of the frames behind a keyframe in the file none may be shown before it.
    furthest = np.maximum.accumulate(np.asarray(packets))
    alone = tuple(key for key in keys if furthest[key] == packets[key])
    open_groups = len(alone) < len(keys)
    return replace(
        info,
        pts=pts,
        packets=packets,
        keyframes=alone,
        open_groups=open_groups,
        retimed=retimed,
        held=held if held >= _HELD_STEPS * step else 0,
    ), first
