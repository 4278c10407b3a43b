"""Detection of bad batches, and restoration of buffers after a skipped batch."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from statistics import median

import torch
from torch import _foreach_copy_ as foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from vidvq.training.config import GuardConfig

# Number of recent losses for the median, and the number from which it is used.
_HISTORY = 100
_MIN_HISTORY = 20


class RollbackNeeded(Exception):
    """The training state is bad: too many consecutive batches were skipped, or the discriminator loss is not finite."""


@dataclass(frozen=True)
class Skipped:
    """A skipped micro-batch, which left the training state unchanged.

    Attributes:
        reason: cause, for the log.
    """

    reason: str


class LossSpikeGuard:
    """Detects loss spikes relative to the median of recent good losses.

    Args:
        config: thresholds.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._consecutive_skips = 0

    @property
    def losses(self) -> list[float]:
        """Recent good losses, oldest first."""
        return list(self._losses)

    def restore(self, losses: Iterable[float]) -> None:
        """Replace the recent losses and reset the count of skipped batches."""
        self._losses.clear()
        self._losses.extend(losses)
        self._consecutive_skips = 0

    def check(self, loss: float) -> Skipped | None:
        """Check the loss of a micro-batch.

        Args:
            loss: loss averaged over all ranks, so that all ranks decide the same.

        Returns:
            The reason to skip the micro-batch; None if the loss is good.

        Raises:
            RollbackNeeded: more than ``patience`` consecutive micro-batches are bad.
        """
        if not isfinite(loss):
            return self.skip(f"its loss is {loss}")
        if len(self._losses) >= _MIN_HISTORY and loss > self._config.spike * (usual := median(self._losses)):
            return self.skip(f"its loss is {loss:.4g}, the recent median {usual:.4g}")
        self._losses.append(loss)
        self._consecutive_skips = 0
        return None

    def skip(self, reason: str) -> Skipped:
        """Record a bad micro-batch.

        Args:
            reason: cause, for the log.

        Raises:
            RollbackNeeded: more than ``patience`` consecutive micro-batches are bad.
        """
        self._consecutive_skips += 1
        if self._consecutive_skips > self._config.patience:
            raise RollbackNeeded(f"{self._consecutive_skips} consecutive batches are bad; for the last one, {reason}")
        return Skipped(reason)


class BufferSnapshot:
    """Snapshot of the buffers of a module, which a training forward pass updates before the loss is known.

    Args:
        module: module that owns the buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = list(module.buffers())
        self._copies = [torch.empty_like(buffer) for buffer in self._buffers]

    @torch.no_grad()
    def save(self) -> None:
        """Save the current buffers."""
        foreach_copy_(self._copies, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the saved buffers."""
        foreach_copy_(self._buffers, self._copies)
