"""Times of a video's frames: one ascending timeline from what a file says, and the frames that are on screen on it."""

from array import array
from collections.abc import Sequence

import numpy as np

# A time out of place is repaired where the timeline goes on within so many frames.
_STRAYS = 16
_A_RECORDING = 3


def usual_step(times: Sequence[int | None]) -> int:
    """The median of the ticks from one frame to the next, at least 1; 0 where no two times ascend."""
    known = np.asarray([time for time in times if time is not None], dtype=np.int64)
    steps = np.sort(np.diff(known))
    steps = steps[steps > 0]
    return int(steps[len(steps) // 2]) if len(steps) else 0


def continuous(times: Sequence[int | None], step: int, longest: int | None) -> "tuple[array[int], bool]":
    """One strictly ascending timeline of frames in the order in which a decoder puts them out.

    Frames with an unknown time, or with a time out of place among its neighbours, are spread evenly between those;
    where times start again, or jump by more than ``longest``, what follows is moved to begin one step later.

    Args:
        times: time of each frame (ticks); None where it is unknown.
        step: the usual ticks from one frame to the next.
        longest: the most ticks from one frame to the next that are a pause and not another recording; None for any.

    Returns:
        ``(times, whether a known time had to change)``.
    """
    step = max(step, 1)
    pts = array("q")
    # Of the last frame whose time holds: its index, its time in the file, and what was added to it.
    last, stored, offset, moved = -1, 0, 0, False

    def put(index: int, time: int) -> None:
        """Add the frame ``index`` at ``time``, and those that are left out before it between the last and it."""
        gap = index - last
        before = pts[-1] if pts else time - gap * step
        pts.extend(before + (time - before) * place // gap for place in range(1, gap))
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
    pts.extend(start + step * place for place in range(1, len(times) - len(pts) + 1))
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
    """Where the timeline goes on behind frame ``index``, if that is a stray: None if it is not.

    Args:
        times, step, longest: see :func:`continuous`.
        index: the frame in question.
        beyond: its time where that lies ahead: it is a stray if later frames come before it.
        stored: time of frame ``last``, the last one that holds.
        last: see ``stored``.
    """
    if beyond is not None and beyond - stored <= _STRAYS * step * (index - last):
        return None
    ascending = beyond is None
    for ahead in range(index + 1, min(index + 1 + _STRAYS, len(times))):
        time, before = times[ahead], times[ahead - 1]
        ascending = ascending and (time is None or before is None or time > before)
        # Frames in good order among themselves are no strays: another recording begins, and overlaps this one.
        if ascending and ahead - index >= _A_RECORDING:
            return None
        if time is None or (beyond is not None and time >= beyond):
            continue
        frames = ahead - last
        near = frames * step // 2 <= time - stored <= _STRAYS * step * frames
        if near and _fits(time - stored, frames, longest):
            return ahead
    return None
