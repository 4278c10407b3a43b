"""Stateless schedules of learning rates and loss weights."""

from dataclasses import dataclass
from math import cos, pi
from typing import Annotated, Literal

from pydantic import Field

from vidvq.errors import UsageError


@dataclass(frozen=True)
class Ramp:
    """A loss weight that changes from one value to another.

    Attributes:
        begin: weight until step ``first`` (0 or more).
        end: weight from step ``last`` (0 or more).
        last: last step of the ramp, counted from 0; at least ``first``.
        first: first step of the ramp, counted from 0.
        shape: curve of the ramp: ``linear`` or ``cosine``.
    """

    begin: Annotated[float, Field(ge=0)]
    end: Annotated[float, Field(ge=0)]
    last: Annotated[int, Field(ge=0)]
    first: Annotated[int, Field(ge=0)] = 0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise UsageError(f"last={self.last} must be at least first={self.first}")

    def at(self, step: int) -> float:
        """Return the weight at a step."""
        if step >= self.last:
            return self.end
        progress = max(step - self.first, 0) / (self.last - self.first) if self.last > self.first else 0.0
        if self.shape == "cosine":
            progress = 0.5 * (1 - cos(pi * progress))
        return self.begin + (self.end - self.begin) * progress


Weight = Annotated[float, Field(ge=0)] | Ramp


def weight_at(weight: Weight, step: int) -> float:
    """Return the value of a weight at a step."""
    return weight.at(step) if isinstance(weight, Ramp) else weight


def is_used(weight: Weight) -> bool:
    """Return whether a weight is above 0 at any step."""
    return max(weight.begin, weight.end) > 0 if isinstance(weight, Ramp) else weight > 0


def learning_rate(step: int, steps: int, lr: float, final: float, warmup: int, decay: float | None = None) -> float:
    """Return the learning rate of a linear warm-up followed by a decay.

    Args:
        step: current step, counted from 0.
        steps: total number of steps.
        lr: peak learning rate.
        final: learning rate at ``step=steps``, after the last step, as a fraction of ``lr``.
        warmup: length of the warm-up (steps).
        decay: fraction of ``steps`` in which the rate decays linearly, after a constant one: warmup-stable-decay (Hu et
            al. 2024, "MiniCPM", section 4). None for a cosine that starts after the warm-up.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    first = warmup if decay is None else max(steps - round(decay * steps), warmup)
    progress = min(max(step - first, 0) / max(steps - first, 1), 1)
    remaining = 1 - progress if decay is not None else 0.5 * (1 + cos(pi * progress))
    return lr * (final + (1 - final) * remaining)
