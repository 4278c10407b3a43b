"""Probing of a video: format and timeline, counted from its packets or frames.

The frame count in the container is never used. The timeline comes from the packets if they can be trusted, at a
fraction of the cost of decoding. Otherwise the whole video is decoded once for the number, order and times of frames.
"""

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from av.video.frame import VideoFrame

from vidvq.video.colour import is_plain, refuse_unsupported
from vidvq.video.container import VideoError
from vidvq.video.ending import end_of_only_stream, is_torn
from vidvq.video.geometry import orientation
from vidvq.video.limits import Limits
from vidvq.video.packets import LONGEST_PAUSE_S, RECORDED, Packets
from vidvq.video.stream import decode, demuxer, open_video, video_stream
from vidvq.video.timeline import median_step, repair_timeline

DecoderName = Literal["decord", "nvdec", "pyav"]

# Pixel aspect ratios from this up, and their inverses, are errors in the file.
_ODD_ASPECT = 10
_MAX_TICKS = 1 << 60
# A last frame shown this many times longer than usual is held.
_HELD_STEPS = 2
# Demuxers of containers that store the duration of each frame. Others derive it from a frame rate.
_STORE_DURATIONS = {"mov", "gif", "apng"}


@dataclass(frozen=True)
class VideoInfo:
    """Format and timeline of a video.

    Attributes:
        container: name of the libav demuxer.
        codec: libav name of the codec, such as ``h264``.
        height, width: size of the first frame (pixels).
        time_base: duration of a tick (seconds), that of the file or a whole fraction of it.
        pts: presentation time of every frame (ticks), strictly ascending; a packed array, because videos may have
            millions of frames.
        torn: whether the file is truncated: shorter than the index or length in its container.
        open_groups: whether frames stored after a keyframe are shown before it.
        keyframes: indices of the frames at which decoding can start, ascending.
        seek_points: indices of the frames that a seek can reach, ascending: ``keyframes`` and those of open groups, in
            a packed array; empty if the video is read from the start, as if the timeline comes from decoding.
        quarter_turns: number of counter-clockwise quarter turns to show the picture upright, from the display matrix.
        mirrored: whether to flip the picture horizontally after the rotation.
        pixel_aspect: width of a pixel divided by its height.
        is_interlaced: whether the first frame is interlaced.
        is_plain: whether the video is 8-bit, upright, progressive, and limited-range BT.601 or untagged.
        packets: index of the packet of each frame if the timeline comes from decoding; None if it comes from packets.
        pixel_format: libav name of the pixel format, such as ``yuv420p``; empty if unknown.
        retimed: whether ``pts`` differ from the times in the file, which restart, jump or contradict each other.
        held: duration of the last frame if it is far longer than usual (ticks); otherwise 0.
        last: duration of the last frame according to the container (ticks); 0 if it stores none.
        max_pixels: maximum width times height of a frame (pixels).
        max_frames: maximum number of frames of a timeline sampled from this one, without gaps.
        max_gap_s: maximum time that a frame is repeated for in such a timeline (seconds); None for no maximum.
        max_side: maximum length that a side of a frame is scaled up to (pixels).
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
    seek_points: Sequence[int] = ()
    quarter_turns: int = 0
    mirrored: bool = False
    pixel_aspect: Fraction = Fraction(1)
    is_interlaced: bool = False
    is_plain: bool = True
    packets: Sequence[int] | None = None
    pixel_format: str = ""
    retimed: bool = False
    held: int = 0
    last: int = 0
    max_pixels: int = Limits.max_pixels
    max_frames: int = Limits.max_frames
    max_gap_s: float | None = None
    max_side: int = Limits.max_side

    @property
    def shown_size(self) -> tuple[Fraction, Fraction]:
        """Displayed ``(height, width)``: upright, in square pixels."""
        height, width = Fraction(self.height), self.width * self.pixel_aspect
        return (width, height) if self.quarter_turns % 2 else (height, width)

    @property
    def num_frames(self) -> int:
        """Number of frames in the file."""
        return len(self.pts)

    @property
    def tick_per_frame(self) -> int:
        """Median step from one frame to the next (ticks); for a single frame, its duration."""
        steps = np.sort(np.diff(np.asarray(self.pts, dtype=np.int64)))
        return max(int(steps[len(steps) // 2]), 1) if len(steps) else max(self.held, 1)

    @property
    def end(self) -> int:
        """End of the last frame (ticks)."""
        return self.pts[-1] + (self.held or self.tick_per_frame)

    @property
    def ends_unusually(self) -> bool:
        """Whether the rate varies and the last frame, as stored, is shown for another time than the median.

        A last frame alone does not make a rate vary, except of two frames. Rounding to ticks does not either.
        """
        steps = np.diff(np.asarray(self.pts, dtype=np.int64))
        if not self.last or not len(steps) or abs(self.last - self.tick_per_frame) <= 1:
            return False
        return len(steps) == 1 or int(steps.max() - steps.min()) > 1

    @property
    def fps(self) -> float:
        """Mean frame rate (frames per second)."""
        ticks = self.pts[-1] - self.pts[0] + self.tick_per_frame
        return float(self.num_frames / (ticks * self.time_base))


def probe(path: Path, limits: Limits, fps: float | None = None) -> VideoInfo:
    """Probe a video: read its packets, and decode it once if they cannot be trusted.

    Args:
        fps: rate at which the timeline will be sampled (frames per second). If a tick of the file is as long as a
            frame, or longer than the time from one sample to the next, ``time_base`` is a fraction of it, so that each
            sample has its own exact time.

    Raises:
        VideoError: the video is not readable, exceeds a limit, or has no frames.
    """
    info = _probe(path, limits)
    if fps is None:
        return info
    step = 1 / (exact_rate(fps) * info.time_base)
    return _with_parts(info, step.denominator) if step < 1 or info.tick_per_frame == 1 else info


def exact_rate(fps: float) -> Fraction:
    """The fraction that a rate is meant to be (frames per second)."""
    return Fraction(fps).limit_denominator(100_000)


def _with_parts(info: VideoInfo, parts: int) -> VideoInfo:
    """The same video with ticks of a fraction of the length."""
    pts = np.asarray(info.pts, dtype=np.int64)
    if max(-int(pts[0]), int(pts[-1])) * parts > _MAX_TICKS:
        raise VideoError("too_large", f"has a time of {float(pts[-1] * info.time_base):g} s")
    return replace(
        info,
        time_base=info.time_base / parts,
        pts=array("q", (pts * parts).tobytes()),
        held=info.held * parts,
        last=info.last * parts,
    )


def _probe(path: Path, limits: Limits) -> VideoInfo:
    deadline = time.monotonic() + limits.deadline_s
    size = path.stat().st_size if path.exists() else 0
    if size > limits.max_bytes:
        raise VideoError("too_large", f"has {size} bytes; the cap is limits.max_bytes={limits.max_bytes}")
    with open_video(path, limits.max_pixels) as container:
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
            pixel_format=stream.codec_context.pix_fmt or "",
            pixel_aspect=Fraction(aspect) if aspect and _ODD_ASPECT > aspect > 1 / _ODD_ASPECT else Fraction(1),
            max_pixels=limits.max_pixels,
            max_frames=limits.max_frames,
            max_gap_s=limits.max_gap_s,
            max_side=limits.max_side,
        )
        trusted = packets.are_trusted(container, stream)
        seek_points = packets.seek_points(container)
        end = end_of_only_stream(container, info.time_base, int(packets.pts.max()), packets.last_ends)
    # Reopen the file only after closing it: libav keeps an index of the whole file for each open container.
    if trusted:
        info = replace(info, pts=packets.timeline(), keyframes=packets.keyframes(), seek_points=seek_points)
        stored = packets.last_ends if demuxer(info.container) in _STORE_DURATIONS else end
        info = replace(info, last=_duration(info, stored))
        return _finished(info, _first_frame(path, limits), packets.last_ends, end)
    clock = packets.timeline() if packets.are_in_order else None
    info, first = _confirmed(path, info, limits, deadline, clock)
    return _finished(info, first)


def _duration(info: VideoInfo, end: int | None) -> int:
    """Duration of the last frame if it ends at ``end`` (ticks); 0 if that is unknown or no time after it."""
    return 0 if end is None else max(end - info.pts[-1], 0)


def _finished(info: VideoInfo, first: VideoFrame | None, *ends: int | None) -> VideoInfo:
    """Add size, orientation and colour of the first frame, and the duration of a held last frame."""
    shown = max(_duration(info, end) for end in (*ends, None))
    step = info.tick_per_frame if info.num_frames > 1 else 0
    info = replace(info, held=info.held or (shown if shown >= _HELD_STEPS * step else 0))
    if first is None:
        return replace(info, is_plain=False)
    turns, mirrored = _orientation(first)
    # Interlaced MPEG-4: B-frames before the keyframe of a seek make FFmpeg drop all later ones.
    drops_frames = info.codec == "mpeg4" and info.open_groups and first.interlaced_frame
    return replace(
        info,
        seek_points=() if drops_frames else info.seek_points,
        # Not always that of the stream: FFmpeg crops the left of a picture in multiples of some bytes.
        height=first.height,
        width=first.width,
        quarter_turns=turns,
        mirrored=mirrored,
        is_interlaced=first.interlaced_frame,
        is_plain=is_plain(first) and not turns and not mirrored,
    )


def _orientation(frame: VideoFrame) -> tuple[int, bool]:
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV gives no side data of a frame that has a kind it does not know, such as the EXIF of a camera. Mirrored
        # video with such data is not known.
        return round(frame.rotation / 90) % 4, False
    return orientation(tuple(np.frombuffer(bytes(data), np.int32).tolist()) if data is not None else None)


def _first_frame(path: Path, limits: Limits) -> VideoFrame | None:
    """First frame, for orientation and colour; None if it cannot be decoded, which the reader reports."""
    with open_video(path, limits.max_pixels) as container:
        found = next(decode(container, video_stream(container)), None)
    if found is None or found.frame is None:
        return None
    refuse_unsupported(found.frame)
    return found.frame


def _confirmed(
    path: Path, info: VideoInfo, limits: Limits, deadline: float, clock: "array[int] | None"
) -> tuple[VideoInfo, VideoFrame]:
    """Decode the whole video for its timeline.

    Args:
        path, limits: as for :func:`probe`.
        info: info without a timeline.
        deadline: time limit (seconds on the monotonic clock).
        clock: times of the packets (ticks) if they ascend in file order; None otherwise. If frames come in another
            order, these are decoding times, and are assigned to the frames in output order.

    Returns:
        The info with its timeline, and the first frame.

    Raises:
        VideoError: ``too_large``, ``too_slow``, or no frame can be decoded.
    """
    times: list[int | None] = []
    decoding_times: list[int | None] = []
    packets = array("q")
    keys: list[int] = []
    first: VideoFrame | None = None
    held = last = 0
    with open_video(path, limits.max_pixels) as container:
        stream = video_stream(container)
        for decoded in decode(container, stream, in_order=True):
            if first is None and decoded.frame is not None:
                first = decoded.frame
                refuse_unsupported(first)
            times.append(decoded.pts)
            decoding_times.append(decoded.dts)
            packets.append(decoded.packet)
            last = decoded.frame.duration if decoded.frame is not None else 0
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
    step = median_step(times) or max(round(1 / (rate * info.time_base)), 1)
    longest = int(LONGEST_PAUSE_S / info.time_base) if demuxer(info.container) in RECORDED else None
    pts, retimed = repair_timeline(times, step, longest)
    # Decoding can start at a keyframe if no frame stored after it is shown before it.
    furthest = np.maximum.accumulate(np.asarray(packets))
    closed = tuple(key for key in keys if furthest[key] == packets[key])
    open_groups = len(closed) < len(keys)
    return replace(
        info,
        pts=pts,
        packets=packets,
        keyframes=closed,
        open_groups=open_groups,
        retimed=retimed,
        held=held if held >= _HELD_STEPS * step or len(pts) == 1 else 0,
        last=last if demuxer(info.container) in _STORE_DURATIONS and not retimed else 0,
    ), first
