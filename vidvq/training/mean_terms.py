"""Means of loss terms over micro-batches and ranks."""

from collections import Counter

import torch
from torch import Tensor

from vidvq.training.distributed import DistributedContext, all_reduce_sum


class MeanTerms:
    """Accumulator of loss terms, averaged over ranks and the micro-batches that have them."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Number of micro-batches since the last reset."""
        return max(self._counts.values(), default=0)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the terms of one micro-batch (scalars), of the same names on every rank."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.float()
        self._counts.update(terms.keys())

    def compute_and_reset(self, context: DistributedContext) -> dict[str, float]:
        """Return the means and reset. Collective: call on every rank."""
        names = sorted(self._sums)
        means = all_reduce_sum(torch.stack([self._sums[name] / self._counts[name] for name in names])) / context.size
        self.reset()
        return dict(zip(names, means.tolist(), strict=True))

    def reset(self) -> None:
        """Discard all terms."""
        self._sums, self._counts = {}, Counter()
