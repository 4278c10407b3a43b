"""Sampling of the timeline of a video at a constant rate, and the times of the clips that are cut from it."""

import math
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import overload

import numpy as np

from vidvq.video.container import VideoError
from vidvq.video.probe import VideoInfo, exact_rate

# Maximum length of a sampled timeline, gaps included (frames).
_MAX_TICKS = 1 << 40
# Lists give the time of a frame rounded to a millisecond, which may be later than the frame.
_ROUNDING_S = Fraction(1, 2000)


def sample_timeline(info: VideoInfo, fps: float | None) -> tuple[Sequence[int], Sequence[int]]:
    """Resample the timeline of a video, by time.

    Args:
        fps: target rate (frames per second); None keeps every frame at its time.

    Returns:
        Indices of source frames, and their times (ticks). With ``fps``, the frame on screen at each tick of the new
        clock, which is correct for variable frame rates. Both are computed as they are read.

    Raises:
        VideoError: ``too_large``, if there are more than ``info.max_frames`` frames outside of gaps.
    """
    if fps is None:
        return range(info.num_frames), info.pts
    times = _clock(info, fps)
    count = sum(end - begin for begin, end in gapless_ranges(info, fps))
    if count > info.max_frames:
        raise VideoError(
            "too_large",
            f"lasts {_seconds(info):.0f} s by its timestamps, {count} frames at fps={fps:g}; "
            f"the cap is limits.max_frames={info.max_frames}",
        )
    return OnScreen(info.pts, times), times


def gapless_ranges(info: VideoInfo, fps: float | None) -> list[tuple[int, int]]:
    """Ranges of the sampled timeline between gaps: the first frame of each, and the first one after it.

    A gap begins where a frame is held for more than ``info.max_gap_s``, and more than one frame of the sampled
    timeline; it stays for the usual time of a frame. Without ``fps`` no frame repeats, and there is one range.
    """
    if fps is None:
        return [(0, info.num_frames)]
    times = _clock(info, fps)
    if info.max_gap_s is None:
        return [(0, len(times))]
    longest = max(int(Fraction(info.max_gap_s) / info.time_base), math.ceil(times.step))
    usual = min(info.tick_per_frame, longest)
    steps = np.diff(np.append(np.asarray(info.pts, dtype=np.int64), info.end))
    ranges: list[tuple[int, int]] = []
    begin = 0
    for index in np.flatnonzero(steps > longest).tolist():
        held = bisect_left(times, info.pts[index] + usual)
        ranges.append((begin, held))
        begin = bisect_left(times, info.pts[index + 1]) if index + 1 < info.num_frames else len(times)
    ranges.append((begin, len(times)))
    return [(begin, end) for begin, end in ranges if begin < end]


def frames_between(info: VideoInfo, times: Sequence[int], start_s: float, end_s: float) -> tuple[int, int]:
    """Range of the sampled timeline from a start to an end (exclusive), to half a millisecond.

    Args:
        times: times of all sampled frames (ticks), from :func:`sample_timeline`.
        start_s, end_s: times from the first frame (seconds); the end may be infinite.
    """

    def index(seconds: float) -> int:
        if math.isinf(seconds):
            return len(times)
        # The digits of a float are meant, not its binary value, which may be just above the time of a frame.
        return bisect_left(times, info.pts[0] + (Fraction(str(seconds)) - _ROUNDING_S) / info.time_base)

    return index(start_s), index(end_s)


def overlaps(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of ascending ranges that lie from ``begin`` to ``end`` (exclusive)."""
    for index in range(bisect_right(ranges, begin, key=lambda each: each[1]), len(ranges)):
        first, after = ranges[index]
        if max(first, begin) >= end:
            return
        yield max(first, begin), min(after, end)


def _clock(info: VideoInfo, fps: float) -> "Clock":
    step = 1 / (exact_rate(fps) * info.time_base)
    count = max(math.floor((info.end - info.pts[0]) / step + Fraction(1, 2)), 1)
    if count > _MAX_TICKS:
        raise VideoError("too_large", f"lasts {_seconds(info):.0f} s by its timestamps, {count} frames at fps={fps:g}")
    return Clock(info.pts[0], step, count)


def _seconds(info: VideoInfo) -> float:
    return float((info.end - info.pts[0]) * info.time_base)


class _Computed(Sequence[int], ABC):
    """Integers that are computed as they are read: a file may claim to last for years.

    Args:
        arguments: what each integer is computed from.
    """

    def __init__(self, arguments: Sequence[int]) -> None:
        self._arguments = arguments

    @abstractmethod
    def _compute(self, argument: int) -> int: ...

    def __len__(self) -> int:
        return len(self._arguments)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> "array[int]": ...
    def __getitem__(self, index: int | slice) -> "int | array[int]":
        """The integer at one index, or those at several."""
        if isinstance(index, slice):
            return array("q", map(self._compute, self._arguments[index]))
        return self._compute(self._arguments[index])


class Clock(_Computed):
    """Times of a constant rate (ticks), rounded.

    Args:
        start: first time (ticks).
        step: exact distance of two times (ticks).
        count: number of times.
    """

    def __init__(self, start: int, step: Fraction, count: int) -> None:
        super().__init__(range(count))
        self.step = step
        self._start = start

    def _compute(self, argument: int) -> int:
        # math.floor(argument * step + 1 / 2) in whole numbers.
        over, under = self.step.numerator, self.step.denominator
        return self._start + (2 * argument * over + under) // (2 * under)


class OnScreen(_Computed):
    """Indices of the frames on screen at given times.

    Args:
        pts: time of each frame (ticks), ascending.
        times: times (ticks).
    """

    def __init__(self, pts: Sequence[int], times: Clock) -> None:
        super().__init__(times)
        self._pts = pts

    def _compute(self, argument: int) -> int:
        return max(bisect_right(self._pts, argument) - 1, 0)


def clip_times(
    info: VideoInfo, times: Sequence[int], first: int, num_frames: int
) -> tuple[tuple[int, ...], int, float]:
    """Times of the frames of a clip.

    Args:
        times: times of all sampled frames (ticks), from :func:`sample_timeline`.
        first: index of the first frame of the clip.

    Returns:
        Times of the frames (ticks), duration of the clip (ticks) and mean frame rate (frames per second). The duration
        lasts until the next frame of the video. At the end of the video it lasts until the end of a held last frame,
        or of an unusual one of a variable rate; otherwise the last frame has the mean duration of the others.
    """
    after = first + num_frames
    pts = tuple(times[first:after])
    if after < len(times):
        end = times[after]
    elif info.held and pts[-1] == info.pts[-1]:
        end = info.end
    elif info.ends_unusually and not isinstance(times, Clock):
        end = pts[-1] + info.last
    elif num_frames > 1:
        end = pts[-1] + (pts[-1] - pts[0]) // (num_frames - 1)
    else:
        end = pts[0] + info.tick_per_frame
    duration = max(end - pts[0], 1)
    return pts, duration, round(float(num_frames / (duration * Fraction(info.time_base))), 6)
