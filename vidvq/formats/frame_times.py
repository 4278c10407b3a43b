"""Frame times in few bytes: the first, then how often each step to the next follows itself.

``[0, [512, 32]]`` is 33 frames, 512 ticks apart. A JSON that lists them all would be most of a small token sample.
"""

from itertools import accumulate, groupby, pairwise, repeat
from typing import Any

from vidvq.errors import UsageError

# Days of video; a JSON of a few bytes must not ask for all memory.
_MAX_FRAMES = 20_000_000


def to_runs(pts: tuple[int, ...]) -> list[int | list[int]]:
    """Frame times, at least one, as ``[first, [step, count], ...]``."""
    steps = (after - before for before, after in pairwise(pts))
    return [pts[0], *([step, sum(1 for _ in same)] for step, same in groupby(steps))]


def from_runs(runs: Any, num_frames: int) -> tuple[int, ...]:
    """The inverse of :func:`to_runs`.

    Raises:
        ValueError: not such a list, or not of so many frames.
    """
    first, *rest = runs
    counts = [count for _, count in rest]
    if any(type(value) is not int for run in rest for value in run) or type(first) is not int:
        raise UsageError("its pts are not whole numbers")
    if any(count < 1 for count in counts) or 1 + sum(counts) != num_frames or num_frames > _MAX_FRAMES:
        raise UsageError(f"its pts are of {1 + sum(counts)} frames, its num_frames is {num_frames}")
    return tuple(accumulate((step for step, count in rest for step in repeat(step, count)), initial=first))
