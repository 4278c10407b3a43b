"""The clips of every batch, as a function of the seed and the batch's number, for all ranks together.

The clips of one data set in one bucket are a stream: an endless sequence of epochs. Each epoch has every clip once,
shuffled by shard and then within a window. A batch chooses its bucket, and each of its clips a data set, by weight;
counting a low-discrepancy sequence gives how often each was chosen before. So batch 1,000,000 is computed without the
batches before it, and the number of ranks or workers does not matter.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from vidvq.data.index import ClipIndex

# 2^64 over the golden ratio: multiples of it, modulo 2^64, fall evenly wherever one stops (Knuth, TAOCP 6.4).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 20
_EPOCHS_KEPT = 16


@dataclass(frozen=True)
class Pick:
    """One clip of a batch: its position in the index, and the epoch of its stream."""

    clip: int
    epoch: int


@dataclass
class _WeightedSequence:
    """An endless sequence of choices, each in proportion to its weight in every prefix."""

    weights: np.ndarray
    _at: int = 0
    _counts: np.ndarray = field(init=False)
    _limits: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shares = np.cumsum(self.weights)[:-1] / self.weights.sum()
        self._limits = np.array([min(int(share * 2.0**64), 2**64 - 1) for share in shares], dtype=np.uint64)
        self._counts = np.zeros(len(self.weights), dtype=np.int64)

    def choices(self, first: int, last: int) -> np.ndarray:
        with np.errstate(over="ignore"):
            spread = np.arange(first, last, dtype=np.uint64) * _GOLDEN
        return np.searchsorted(self._limits, spread, side="right")

    def before(self, position: int) -> np.ndarray:
        """How often each was chosen before ``position``."""
        if position < self._at:
            self._at, self._counts = 0, np.zeros_like(self._counts)
        while self._at < position:
            last = min(self._at + _CHUNK, position)
            self._counts = self._counts + np.bincount(self.choices(self._at, last), minlength=len(self._counts))
            self._at = last
        return self._counts


class BatchOrder:
    """The batches of a run.

    Args:
        index: the clips.
        bucket: the bucket of each clip; -1 where it fits none.
        weights: relative weight of each data set; None makes all clips equally likely.
        batch_size: clips per batch, over all ranks.
        window: size of the shuffle window (clips), after shards are shuffled.
        seed: seed of the order.
    """

    def __init__(
        self,
        index: ClipIndex,
        bucket: np.ndarray,
        weights: list[float] | None,
        batch_size: int,
        window: int,
        seed: int,
    ) -> None:
        self._index, self._batch_size, self._window, self._seed = index, batch_size, window, seed
        sets = int(index.data_set.max()) + 1
        sizes = np.array([[np.sum((bucket == b) & (index.data_set == d)) for d in range(sets)] for b in _used(bucket)])
        usable = sizes.sum(axis=0)
        per_clip = np.ones(sets) if weights is None else np.array(weights) / np.maximum(usable, 1)
        chances = sizes * per_clip
        self.buckets = _used(bucket)
        self._streams = {
            (b, d): np.flatnonzero((bucket == name) & (index.data_set == d))
            for b, name in enumerate(self.buckets)
            for d in range(sets)
        }
        self._bucket_choices = _WeightedSequence(chances.sum(axis=1))
        self._data_set_choices = [_WeightedSequence(row) for row in chances]
        self._epochs: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def batch(self, number: int) -> tuple[int, list[Pick]]:
        """The bucket and the clips of a batch."""
        b = int(self._bucket_choices.choices(number, number + 1)[0])
        first = int(self._bucket_choices.before(number)[b]) * self._batch_size
        sequence = self._data_set_choices[b]
        counts = sequence.before(first).copy()
        picks: list[Pick] = []
        for d in sequence.choices(first, first + self._batch_size):
            epoch, position = divmod(int(counts[d]), len(self._streams[b, d]))
            picks.append(Pick(int(self._epoch(b, int(d), epoch)[position]), epoch))
            counts[d] += 1
        return self.buckets[b], picks

    def substitute(self, bucket: int, clip: int, attempt: int) -> int:
        """Another clip of the same stream, in place of one that cannot be decoded."""
        stream = self._streams[self.buckets.index(bucket), int(self._index.data_set[clip])]
        return int(stream[(int(np.searchsorted(stream, clip)) + attempt) % len(stream)])

    def _epoch(self, b: int, d: int, epoch: int) -> np.ndarray:
        key = (b, d, epoch)
        if key not in self._epochs:
            self._epochs[key] = self._shuffle(self._streams[b, d], np.random.default_rng([self._seed, *key]))
            if len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[key]

    def _shuffle(self, clips: np.ndarray, random: np.random.Generator) -> np.ndarray:
        shards = self._index.shard[clips]
        # A random rank for every shard; a stable sort then keeps a shard's clips together.
        ranks = random.permutation(int(shards.max()) + 1)
        rows = clips[np.argsort(ranks[shards], kind="stable")]
        windows = [rows[start : start + self._window] for start in range(0, len(rows), self._window)]
        return np.concatenate([random.permutation(rows) for rows in windows])


def _used(bucket: np.ndarray) -> list[int]:
    return sorted({int(name) for name in bucket if name >= 0})
