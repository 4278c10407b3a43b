"""Random-access batch order: the samples of each global batch as a function of the seed and the batch number.

The samples (clips or token samples) of one dataset in one bucket form a stream: an endless sequence of epochs. Each
epoch contains each sample once, shuffled by shard and then within a window. Weighted low-discrepancy sequences choose
the bucket of each batch and the dataset of each sample. Counting earlier choices gives positions in the streams, so any
batch is computed without the batches before it, independent of the number of ranks and workers.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

# 2^64 / golden ratio: its multiples modulo 2^64 are evenly spread in every prefix (Knuth, TAOCP 6.4).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 20
_EPOCHS_KEPT = 16


class SampleIndex(Protocol):
    """Clips or token samples in the order of their shards; one entry per sample in each column."""

    @property
    def shard(self) -> np.ndarray:
        """Index of the shard of each sample."""
        ...

    @property
    def dataset(self) -> np.ndarray:
        """Index of the directory of each sample."""
        ...


@dataclass(frozen=True)
class SampledItem:
    """One sample of a batch.

    Attributes:
        index: position of the sample in the index.
        epoch: epoch of the sample's stream.
    """

    index: int
    epoch: int


@dataclass
class _WeightedSampler:
    """A deterministic endless sequence of choices that follows the weights closely in every prefix."""

    weights: np.ndarray
    _position: int = 0
    _counts: np.ndarray = field(init=False)
    _limits: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        fractions = np.cumsum(self.weights)[:-1] / self.weights.sum()
        self._limits = np.array([min(int(limit * 2.0**64), 2**64 - 1) for limit in fractions], dtype=np.uint64)
        self._counts = np.zeros(len(self.weights), dtype=np.int64)

    def choices(self, first: int, last: int) -> np.ndarray:
        """Return the choices at positions ``first`` to ``last - 1``."""
        with np.errstate(over="ignore"):
            spread = np.arange(first, last, dtype=np.uint64) * _GOLDEN
        return np.searchsorted(self._limits, spread, side="right")

    def counts_before(self, position: int) -> np.ndarray:
        """Return the number of times each choice occurs before ``position``."""
        if len(self._counts) == 1:
            return np.array([position])
        if position < self._position:
            self._position, self._counts = 0, np.zeros_like(self._counts)
        while self._position < position:
            last = min(self._position + _CHUNK, position)
            self._counts = self._counts + np.bincount(self.choices(self._position, last), minlength=len(self._counts))
            self._position = last
        return self._counts


class BatchOrder:
    """Order of the batches of a run.

    Args:
        bucket: bucket of each sample; -1 excludes it.
        weights: sampling weight of each dataset; None makes all samples equally likely.
        batch_size: samples per batch, over all ranks.
        window: size of the shuffle window (samples); shards are shuffled first.
    """

    def __init__(
        self,
        index: SampleIndex,
        bucket: np.ndarray,
        weights: list[float] | None,
        batch_size: int,
        window: int,
        seed: int,
    ) -> None:
        self._index, self._batch_size, self._window, self._seed = index, batch_size, window, seed
        self.buckets = sorted({int(name) for name in bucket if name >= 0})
        sets = int(index.dataset.max()) + 1
        self._streams = {
            (b, d): np.flatnonzero((bucket == name) & (index.dataset == d))
            for b, name in enumerate(self.buckets)
            for d in range(sets)
        }
        sizes = np.array([[len(self._streams[b, d]) for d in range(sets)] for b in range(len(self.buckets))])
        usable = sizes.sum(axis=0)
        per_sample = np.ones(sets) if weights is None else np.array(weights) / np.maximum(usable, 1)
        stream_weights = sizes * per_sample
        self._bucket_choices = _WeightedSampler(stream_weights.sum(axis=1))
        self._dataset_choices = [_WeightedSampler(row) for row in stream_weights]
        self._epochs: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def batch(self, number: int) -> tuple[int, list[SampledItem]]:
        """Return the bucket and the samples of a batch."""
        b = int(self._bucket_choices.choices(number, number + 1)[0])
        first = int(self._bucket_choices.counts_before(number)[b]) * self._batch_size
        sequence = self._dataset_choices[b]
        counts = sequence.counts_before(first).copy()
        samples: list[SampledItem] = []
        for d in sequence.choices(first, first + self._batch_size):
            epoch, position = divmod(int(counts[d]), len(self._streams[b, d]))
            samples.append(SampledItem(int(self._epoch(b, int(d), epoch)[position]), epoch))
            counts[d] += 1
        return self.buckets[b], samples

    def substitute(self, bucket: int, index: int, attempt: int) -> int:
        """Return the index of another sample of the same stream, to replace one that cannot be decoded.

        Args:
            index: position of the sample in the index.
            attempt: number of the attempt, counted from 1.
        """
        stream = self._streams[self.buckets.index(bucket), int(self._index.dataset[index])]
        return int(stream[(int(np.searchsorted(stream, index)) + attempt) % len(stream)])

    def _epoch(self, b: int, d: int, epoch: int) -> np.ndarray:
        key = (b, d, epoch)
        if key not in self._epochs:
            self._epochs[key] = self._shuffle(self._streams[b, d], np.random.default_rng([self._seed, *key]))
            if len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[key]

    def _shuffle(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shards = self._index.shard[samples]
        # Random shard order; the stable sort keeps the samples of a shard together.
        ranks = rng.permutation(int(shards.max()) + 1)
        rows = samples[np.argsort(ranks[shards], kind="stable")]
        windows = [rows[start : start + self._window] for start in range(0, len(rows), self._window)]
        return np.concatenate([rng.permutation(rows) for rows in windows])
