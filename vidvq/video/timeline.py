"""Repair of frame times: one strictly ascending timeline from the times in a file."""

from array import array
from collections.abc import Sequence

import numpy as np

# Maximum number of consecutive frames with wrong times that are repaired.
_STRAYS = 16
# Maximum number of frames with the same time that are spread until the next time.
_REPEATS = 128
# Number of frames in ascending order that count as the start of another recording.
_A_RECORDING = 3


def median_step(times: Sequence[int | None]) -> int:
    """Median step from one frame to the next (ticks), at least 1; 0 if no two times ascend.

    Frames with the same time share the step to the next one.
    """
    known = np.asarray([time for time in times if time is not None], dtype=np.int64)
    changes = np.flatnonzero(np.diff(known))
    steps = np.diff(known)[changes]
    shared = np.sort((steps // np.diff(changes, prepend=-1))[steps > 0])
    return max(int(shared[len(shared) // 2]), 1) if len(shared) else 0


def repair_timeline(times: Sequence[int | None], step: int, longest: int | None) -> "tuple[array[int], bool]":
    """Repair the times of frames, given in decoder output order, to be strictly ascending.

    Frames with an unknown time, or a time that contradicts their neighbours, are spaced evenly between them. If times
    restart or jump by more than ``longest``, the following frames are shifted to start one step later.

    Args:
        times: time of each frame (ticks); None if unknown.
        step: median step from one frame to the next (ticks).
        longest: longest pause within a recording (ticks); a longer one starts another recording. None for no limit.

    Returns:
        The times (ticks), and whether a known time was changed.
    """
    step = max(step, 1)
    pts = array("q")
    # The last frame with a valid time: its index, its time in the file, and the shift of its time.
    last, stored, offset, moved = -1, 0, 0, False

    def put(index: int, time: int) -> None:
        """Append frame ``index`` at ``time``, after the skipped frames before it, evenly spaced."""
        gap = index - last
        before = pts[-1] if pts else time - gap * step
        pts.extend(before + (time - before) * number // gap for number in range(1, gap))
        pts.append(time)

    for index, time in enumerate(times):
        if time is None or index < len(pts):
            continue
        if last < 0 or _fits(time - stored, index - last, longest):
            ahead = None if last < 0 else _resumes(times, index, time, stored, last, step, longest)
            if ahead is None:
                put(index, time + offset)
                last, stored = index, time
                continue
        else:
            ahead = _resumes(times, index, None, stored, last, step, longest)
        moved = True
        if ahead is None:
            after = pts[-1] + (index - last) * step
            put(index, after)
            offset = after - time
            last, stored = index, time
        else:
            known = times[ahead]
            assert known is not None
            put(ahead, known + offset)
            last, stored = ahead, known
    start = pts[-1] if pts else -step
    pts.extend(start + step * number for number in range(1, len(times) - len(pts) + 1))
    return pts, moved


def _fits(ticks: int, frames: int, longest: int | None) -> bool:
    return ticks >= frames and (longest is None or ticks <= longest)


def _resumes(
    times: Sequence[int | None],
    index: int,
    beyond: int | None,
    stored: int,
    last: int,
    step: int,
    longest: int | None,
) -> int | None:
    """Index of the frame at which the timeline resumes if frame ``index`` has a wrong time; None if it has not.

    Args:
        times, step, longest: see :func:`repair_timeline`.
        index: the frame in question.
        beyond: its time if that is plausible (ticks); it is wrong if later frames have earlier times.
        stored: time of frame ``last`` (ticks).
        last: index of the last frame with a valid time.
    """
    if beyond is not None and beyond - stored <= _STRAYS * step * (index - last):
        return None
    end = min(index + 1 + _REPEATS, len(times))
    after = index + 1
    while times[index] == stored and after < end and times[after] == stored:
        after += 1
    ascending = beyond is None and after == index + 1
    for ahead in range(after, min(after + _STRAYS, len(times))):
        time, before = times[ahead], times[ahead - 1]
        ascending = ascending and (time is None or before is None or time > before)
        # Frames in ascending order are not errors: another recording starts here and overlaps the last one.
        if ascending and ahead - index >= _A_RECORDING:
            return None
        if time is None or (beyond is not None and time >= beyond):
            continue
        frames = ahead - last
        near = frames * step // 2 <= time - stored <= _STRAYS * step * frames
        if near and _fits(time - stored, frames, longest):
            return ahead
    return None
