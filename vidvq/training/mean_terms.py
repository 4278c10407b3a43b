"""Means of loss terms over micro-batches and ranks."""

import torch
from torch import Tensor

from vidvq.training.distributed import DistributedContext, all_reduce_sum


class MeanTerms:
    """Accumulator of loss terms, averaged over micro-batches and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    @property
    def count(self) -> int:
        """Number of micro-batches since the last reset."""
        return self._count

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the terms of one micro-batch (scalars)."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.float()
        self._count += 1

    def compute_and_reset(self, context: DistributedContext) -> dict[str, float]:
        """Return the means and reset. Collective: call on every rank."""
        names = sorted(self._sums)
        values = all_reduce_sum(torch.stack([self._sums[name] for name in names]))
        means = dict(zip(names, (values / (self._count * context.size)).tolist(), strict=True))
        self.reset()
        return means

    def reset(self) -> None:
        """Discard all terms."""
        self._sums, self._count = {}, 0
