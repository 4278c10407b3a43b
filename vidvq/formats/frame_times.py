"""Run-length encoding of frame times: the first time, then each step to the next with its number of repetitions.

``[0, [512, 32]]`` means 33 frames, 512 ticks apart. A full list would take up most of a small token sample.
"""

from itertools import accumulate, groupby, pairwise, repeat
from typing import Any

from vidvq.errors import UsageError

# Days of video. The limit keeps a damaged JSON of a few bytes from allocating all memory.
MAX_FRAMES = 20_000_000
_MAX_TICKS = 1 << 64


def to_runs(pts: tuple[int, ...]) -> list[int | list[int]]:
    """Encode frame times (at least one) as ``[first, [step, count], ...]``."""
    steps = (after - before for before, after in pairwise(pts))
    return [pts[0], *([step, sum(1 for _ in same)] for step, same in groupby(steps))]


def from_runs(runs: Any, num_frames: int) -> tuple[int, ...]:
    """Decode frame times; the inverse of :func:`to_runs`.

    Raises:
        UsageError: the runs are malformed, or do not have ``num_frames`` frames.
    """
    first, *rest = runs
    counts = [count for _, count in rest]
    if any(type(value) is not int for run in rest for value in run) or type(first) is not int:
        raise UsageError("its pts are not whole numbers")
    if not all(-_MAX_TICKS < value < _MAX_TICKS for run in ((first,), *rest) for value in run):
        raise UsageError("its pts are beyond 65 bits")
    if any(count < 1 for count in counts) or 1 + sum(counts) != num_frames or num_frames > MAX_FRAMES:
        raise UsageError(f"its pts have {1 + sum(counts)} frames, its num_frames is {num_frames}")
    return tuple(accumulate((step for step, count in rest for step in repeat(step, count)), initial=first))
