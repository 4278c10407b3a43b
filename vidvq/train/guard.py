"""Which batches are skipped, and how their traces are removed."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from statistics import median

import torch
from torch import Tensor, nn

from vidvq.train.config import GuardConfig

_HISTORY = 100
_MIN_HISTORY = 20


class RollbackNeeded(Exception):
    """The run's state is bad: too many batches in a row were, or the discriminator's loss is not finite."""


@dataclass(frozen=True)
class Skipped:
    """A micro-batch that was not learned from and left no trace."""

    reason: str


class LossSpikeGuard:
    """Compares losses with the median of recent good ones."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._skipped_in_a_row = 0

    @property
    def losses(self) -> list[float]:
        """Recent good losses."""
        return list(self._losses)

    def restore(self, losses: Iterable[float]) -> None:
        """Start again from these losses."""
        self._losses.clear()
        self._losses.extend(losses)
        self._skipped_in_a_row = 0

    def check(self, loss: float) -> Skipped | None:
        """Whether to skip the micro-batch of this loss, which must be the same on every rank.

        Raises:
            RollbackNeeded: more than ``patience`` in a row are bad.
        """
        if not isfinite(loss):
            return self.skip(f"its loss is {loss}")
        if len(self._losses) >= _MIN_HISTORY and loss > self._config.spike * (usual := median(self._losses)):
            return self.skip(f"its loss is {loss:.4g}, usual is {usual:.4g}")
        self._losses.append(loss)
        self._skipped_in_a_row = 0
        return None

    def skip(self, reason: str) -> Skipped:
        """Count a bad micro-batch.

        Raises:
            RollbackNeeded: more than ``patience`` in a row are bad.
        """
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > self._config.patience:
            raise RollbackNeeded(f"{self._skipped_in_a_row} batches in a row are bad; of the last one, {reason}")
        return Skipped(reason)


class BufferBackup:
    """A copy of a module's buffers, which a training forward changes before its loss is known."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers."""
        for name, buffer in self._module.named_buffers():
            self._copies.setdefault(name, torch.empty_like(buffer)).copy_(buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """Copy them back."""
        for name, buffer in self._module.named_buffers():
            buffer.copy_(self._copies[name])
