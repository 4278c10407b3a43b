"""Order in which the codes of a grid are revealed, and the number of codes that each step reveals."""

from functools import lru_cache
from math import cos, pi

import numpy as np
import torch
from torch import Tensor

# Halton points per position of a grid; the few positions that no point hits come last.
_POINTS_PER_POSITION = 8


def reveal_counts(count: int, steps: int) -> list[int]:
    """Return the cumulative number of revealed codes after each step of the cosine schedule.

    A step reveals at least one code, so there are fewer steps than ``steps`` for few codes.
    """
    ends, done = [], 0
    for step in range(1, steps + 1):
        end = count - int(count * cos(pi / 2 * step / steps))
        end = min(max(end, done + 1), count)
        if end > done:
            ends.append(end)
        done = end
        if done == count:
            break
    return ends


def reveal_order(shape: tuple[int, int, int], order: str, rng: torch.Generator) -> Tensor:
    """Return the flat positions of a grid in the order of revealing them."""
    shuffled = torch.randperm(shape[0] * shape[1] * shape[2], generator=rng)
    if order != "halton":
        return shuffled
    # A random shift of the sequence modulo 1, one per sample (Cranley and Patterson 1976).
    points = (_halton(_POINTS_PER_POSITION * len(shuffled)) + torch.rand(3, generator=rng).numpy()) % 1.0
    cells = np.minimum((points * shape).astype(np.int64), np.array(shape) - 1)
    flat = np.ravel_multi_index((cells[:, 0], cells[:, 1], cells[:, 2]), shape)
    hit, first = np.unique(flat, return_index=True)
    ranks = np.full(len(shuffled), len(flat))
    ranks[hit] = first
    return shuffled[torch.from_numpy(np.argsort(ranks[shuffled.numpy()], kind="stable"))]


@lru_cache(maxsize=16)
def _halton(count: int) -> np.ndarray:
    """Return the first points ``count 3`` of the Halton sequence with bases 2, 3 and 5."""
    columns = []
    for base in (2, 3, 5):
        rest, value, scale = np.arange(1, count + 1), np.zeros(count), 1.0
        while rest.any():
            scale /= base
            value += scale * (rest % base)
            rest //= base
        columns.append(value)
    return np.stack(columns, axis=1)
