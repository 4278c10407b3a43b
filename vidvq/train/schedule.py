"""Schedules of learning rates and loss weights: functions of the step alone, without state."""

from dataclasses import dataclass
from math import cos, pi
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vidvq.errors import UsageError


@dataclass(frozen=True)
class Ramp:
    """A weight that moves between two values.

    Attributes:
        begin, end: its values until step ``first`` and from step ``last`` on.
        first, last: steps, counted from 0.
        shape: curve between the two values.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    begin: Annotated[float, Field(ge=0)]
    end: Annotated[float, Field(ge=0)]
    last: Annotated[int, Field(ge=0)]
    first: Annotated[int, Field(ge=0)] = 0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise UsageError(f"last={self.last} must be at least first={self.first}")

    def at(self, step: int) -> float:
        """The weight at a step."""
        if step >= self.last:
            return self.end
        share = max(step - self.first, 0) / (self.last - self.first) if self.last > self.first else 0.0
        if self.shape == "cosine":
            share = 0.5 * (1 - cos(pi * share))
        return self.begin + (self.end - self.begin) * share


Weight = Annotated[float, Field(ge=0)] | Ramp


def weight_at(weight: Weight, step: int) -> float:
    """The value of a weight at a step."""
    return weight.at(step) if isinstance(weight, Ramp) else weight


def is_used(weight: Weight) -> bool:
    """Whether a weight is above 0 at any step."""
    return max(weight.begin, weight.end) > 0 if isinstance(weight, Ramp) else weight > 0


def learning_rate(step: int, steps: int, lr: float, final: float, warmup: int) -> float:
    """Linear from 0 to ``lr`` over ``warmup`` steps, then a cosine to ``lr * final`` at ``steps``."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1)
    return lr * (final + (1 - final) * 0.5 * (1 + cos(pi * progress)))
