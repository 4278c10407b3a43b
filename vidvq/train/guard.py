"""Which batches are not learned from, and what undoes what they touched."""

from collections import deque
from dataclasses import dataclass, field
from math import isfinite
from statistics import median

import torch
from torch import Tensor, nn

from vidvq.train.config import GuardConfig

_HISTORY = 100
_ENOUGH = 20


class RollbackNeeded(Exception):
    """The run's state is bad: no batch is good any more, or the discriminator's loss is not a number."""


@dataclass
class Guard:
    """Judges losses by the last good ones.

    Attributes:
        losses: the last good ones.
        bad: batches in a row that were not.
    """

    config: GuardConfig
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    bad: int = 0

    def judge(self, loss: float) -> str | None:
        """What is wrong with a loss, or None.

        Raises:
            RollbackNeeded: too many in a row were wrong.
        """
        reason = None
        if not isfinite(loss):
            reason = f"its loss is {loss}"
        elif len(self.losses) >= _ENOUGH and loss > self.config.spike * (usual := median(self.losses)):
            reason = f"its loss is {loss:.4g}, usual is {usual:.4g}"
        if reason is None:
            self.losses.append(loss)
            self.bad = 0
            return None
        self.bad += 1
        if self.bad > self.config.patience:
            raise RollbackNeeded(f"{self.bad} batches in a row are bad; of the last one, {reason}")
        return reason


class Buffers:
    """A copy of a module's buffers, which a forward pass in training changes before anything is known of the loss."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them as they are now."""
        for name, buffer in self._module.named_buffers():
            self._copies.setdefault(name, torch.empty_like(buffer)).copy_(buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for name, buffer in self._module.named_buffers():
            buffer.copy_(self._copies[name])
