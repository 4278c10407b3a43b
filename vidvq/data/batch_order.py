"""Random-access batch order: the samples of each global batch as a function of the seed and the batch number.

The samples (clips or token samples) of one dataset in one bucket form a stream: an endless sequence of epochs. Each
epoch contains each sample once, shuffled by shard and then within a window. Weighted low-discrepancy sequences choose
the bucket of each batch and the dataset of each sample. Counting earlier choices gives positions in the streams, so any
batch is computed without the batches before it, independent of the number of ranks and workers.
"""

from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

# 2^64 / golden ratio: its multiples modulo 2^64 are evenly spread in every prefix (Knuth, TAOCP 6.4).
_GOLDEN = 0x9E3779B97F4A7C15
_MODULUS = 1 << 64


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


class _WeightedSampler:
    """A deterministic endless sequence of choices that follows the weights closely in every prefix.

    The choice at a position is the interval of ``edges`` that contains the multiple of the golden ratio.
    """

    def __init__(self, weights: np.ndarray) -> None:
        ends = np.cumsum(weights)
        inner = [min(int(fraction * 2.0**64), _MODULUS - 1) for fraction in ends[:-1] / ends[-1]]
        self._edges = [0, *inner, _MODULUS]
        self._inner = np.array(inner, dtype=np.uint64)

    def choices(self, first: int, last: int) -> np.ndarray:
        """Return the choices at positions ``first`` to ``last - 1``."""
        spread = np.arange(first, last, dtype=np.uint64) * np.uint64(_GOLDEN)
        return np.searchsorted(self._inner, spread, side="right")

    def count_before(self, choice: int, position: int) -> int:
        """Return the number of times a choice occurs before ``position``."""
        if len(self._edges) == 2:
            return position
        # Of the multiples x, floor((x + modulus - edge) / modulus) - floor(x / modulus) counts those from an edge on.
        low, high = (_MODULUS - edge for edge in self._edges[choice : choice + 2])
        return _floor_sum(position, low) - _floor_sum(position, high)


def _floor_sum(count: int, offset: int) -> int:
    """Return the sum of ``floor((i * _GOLDEN + offset) / _MODULUS)`` over ``i < count``, in logarithmic time."""
    total, factor, modulus = 0, _GOLDEN, _MODULUS
    while count:
        whole, factor = divmod(factor, modulus)
        each, offset = divmod(offset, modulus)
        total += count * (count - 1) // 2 * whole + count * each
        # The points below the line, counted along the other axis.
        count, offset = divmod(factor * count + offset, modulus)
        factor, modulus = modulus, factor
    return total


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
        used = np.flatnonzero(bucket >= 0)
        names, rows = np.unique(bucket[used], return_inverse=True)
        self.buckets: list[int] = names.tolist()
        sets = int(index.dataset.max()) + 1 if weights is None else len(weights)
        stream = rows * sets + index.dataset[used]
        sizes = np.bincount(stream, minlength=len(names) * sets).reshape(-1, sets)
        by_stream = np.split(used[np.argsort(stream, kind="stable")], np.cumsum(sizes)[:-1])
        self._streams = dict(zip(product(range(len(names)), range(sets)), by_stream, strict=True))
        per_sample = np.ones(sets) if weights is None else np.array(weights) / np.maximum(sizes.sum(axis=0), 1)
        stream_weights = sizes * per_sample
        self._bucket_choices = _WeightedSampler(stream_weights.sum(axis=1))
        self._dataset_choices = [_WeightedSampler(row) for row in stream_weights]
        # The newest epoch of each stream, and its order. Batches are read in order, so older ones are not needed again.
        self._epochs: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    def batch(self, number: int) -> tuple[int, list[SampledItem]]:
        """Return the bucket and the samples of a batch."""
        b = int(self._bucket_choices.choices(number, number + 1)[0])
        first = self._bucket_choices.count_before(b, number) * self._batch_size
        chosen = self._dataset_choices[b].choices(first, first + self._batch_size).tolist()
        counts = {d: self._dataset_choices[b].count_before(d, first) for d in set(chosen)}
        samples: list[SampledItem] = []
        for d in chosen:
            epoch, position = divmod(counts[d], len(self._streams[b, d]))
            samples.append(SampledItem(int(self._epoch(b, d, epoch)[position]), epoch))
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
        newest, order = self._epochs.get((b, d), (-1, None))
        if order is None or newest != epoch:
            order = self._shuffle(self._streams[b, d], np.random.default_rng([self._seed, b, d, epoch]))
            self._epochs[b, d] = epoch, order
        return order

    def _shuffle(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shards = self._index.shard[samples]
        # Random shard order; the stable sort keeps the samples of a shard together.
        ranks = rng.permutation(int(shards.max()) + 1)
        rows = samples[np.argsort(ranks[shards], kind="stable")]
        windows = [rows[start : start + self._window] for start in range(0, len(rows), self._window)]
        return np.concatenate([rng.permutation(rows) for rows in windows])
