"""Bits per token of n-gram models, to compare a generator with."""

from collections.abc import Iterable, Sequence

import numpy as np

from vidvq.formats.token_shard import TokenizerCard

# Models that condition a code on another one.
_CONTEXTS = ("bigram", "temporal")


class NgramModels:
    """Unigram and bigram models of tokens.

    ``unigram`` models the frequency of each code in its codebook. ``bigram`` conditions on the previous code in raster
    order, ``temporal`` on the code at the same position of the previous latent frame; both back off to the unigram.

    Args:
        samples: codes ``lt lh lw`` to count, of one or more samples.
    """

    def __init__(self, card: TokenizerCard, samples: Sequence[np.ndarray]) -> None:
        self._card = card
        self._offsets, self._sizes = np.array([(book.offset, book.size) for book in card.codebooks]).T
        flat = [self._flatten(codes) for codes in samples]
        self._counts = np.bincount(np.concatenate([ids.ravel() for ids in flat]), minlength=card.vocabulary)
        # By model, the pairs that occur, ascending, and how often those before each occur together.
        self._pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in _CONTEXTS:
            pairs, counts = np.unique(np.concatenate([self._pair(name, ids) for ids in flat]), return_counts=True)
            self._pairs[name] = pairs, np.concatenate([[0], np.cumsum(counts)])

    def bits(self, samples: Iterable[np.ndarray], given: int = 0) -> dict[str, float]:
        """Return the mean bits per token by model.

        Args:
            samples: codes ``lt lh lw``.
            given: number of first latent frames that are context only.
        """
        sums = dict.fromkeys(("uniform", "unigram", *_CONTEXTS), 0.0)
        totals, tokens = np.add.reduceat(self._counts, self._offsets), 0
        for codes in samples:
            ids, context = self._flatten(codes), codes[:given].size
            scored = ids.ravel()[context:]
            tokens += len(scored)
            books = np.searchsorted(self._offsets, scored, side="right") - 1
            offsets, sizes = self._offsets[books], self._sizes[books]
            # Laplace smoothing: no code has probability 0.
            unigram = (self._counts[scored] + 1) / (totals[books] + sizes)
            sums["uniform"] += float(np.log2(sizes).sum())
            sums["unigram"] -= float(np.log2(unigram).sum())
            for name in _CONTEXTS:
                pairs = self._pair(name, ids)[context:]
                _, count = self._count(name, pairs, pairs + 1)
                # A context is the code before, and the codebook of the code.
                first = pairs - scored + offsets
                followers, seen = self._count(name, first, first + sizes)
                # The weight of the unigram is the number of distinct followers (Witten and Bell 1991).
                weight = np.maximum(followers, 1)
                sums[name] -= float(np.log2((count + weight * unigram) / (seen + weight)).sum())
        return {name: bits / max(tokens, 1) for name, bits in sums.items()}

    def _flatten(self, codes: np.ndarray) -> np.ndarray:
        """Map codes ``lt lh lw`` to ids of the flat vocabulary over all codebooks."""
        return codes.astype(np.int64) + self._card.offsets(range(len(codes)))

    def _pair(self, name: str, ids: np.ndarray) -> np.ndarray:
        """Number the pairs ``n`` of a code and the one that it is conditioned on: ids and 1 + ids, 0 at the start."""
        flat = ids.ravel()
        back = ids[0].size if name == "temporal" else 1
        before = np.concatenate([np.zeros(back, dtype=np.int64), flat[:-back] + 1])
        return before * self._card.vocabulary + flat

    def _count(self, name: str, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of distinct pairs from ``low`` to below ``high``, and their occurrences."""
        pairs, before = self._pairs[name]
        first, last = np.searchsorted(pairs, low), np.searchsorted(pairs, high)
        return last - first, before[last] - before[first]
