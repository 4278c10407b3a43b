"""Codebook usage: how many codes occur in tokens, and how evenly; in tokenization and in training."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np

from vidvq.formats.token_shard import TokenizerCard

# Tokens that are counted together.
_WAITING = 1 << 18


@dataclass(frozen=True)
class CodebookUsage:
    """Usage of one codebook.

    Attributes:
        used: number of codes that occur.
        perplexity: perplexity of the distribution of codes, 1 to ``size``; 0 without tokens.
    """

    name: str
    size: int
    used: int
    perplexity: float
    tokens: int

    @property
    def share(self) -> float:
        """Fraction of the codes that occur."""
        return self.used / self.size

    @property
    def entropy(self) -> float:
        """Empirical entropy of the distribution of codes, of order 0 (bits per code)."""
        return log2(self.perplexity) if self.perplexity else 0.0

    def line(self) -> str:
        """The usage in one line of text."""
        return f"{self.name} codebook: {self.used} of {self.size} codes in use, perplexity {self.perplexity:.0f}"


class CodeCounts:
    """Occurrences of the codes of each codebook, summed over grids."""

    def __init__(self, card: TokenizerCard) -> None:
        self._card = card
        self._histograms = [_Histogram() for _ in card.codebooks]

    def add(self, codes: np.ndarray) -> None:
        """Count codes ``lt lh lw``, local to the codebook of their group."""
        for index, part in self._by_codebook(codes):
            self._histograms[index].count(part)

    def merge(self, other: "CodeCounts") -> None:
        """Add the counts of another instance."""
        for own, more in zip(self._histograms, other._histograms, strict=True):
            own.add(*more.items())

    def reset(self, index: int) -> None:
        """Set the counts of a codebook to 0."""
        self._histograms[index] = _Histogram()

    def entropy_bits(self, codes: np.ndarray) -> float:
        """Size of codes ``lt lh lw`` (bits) with an ideal code for the counted frequencies, without its table.

        This is the cross entropy of order 0: no context, and each codebook has its own distribution. All codes must
        have been counted.
        """
        bits = 0.0
        for index, part in self._by_codebook(codes):
            known, counts = self._histograms[index].items()
            bits -= float(np.log2(counts[np.searchsorted(known, part)] / counts.sum()).sum())
        return bits

    def use(self) -> tuple[CodebookUsage, ...]:
        """Usage of each codebook."""
        return tuple(
            codebook_usage(book.name, book.size, histogram.items()[1])
            for book, histogram in zip(self._card.codebooks, self._histograms, strict=True)
        )

    def _by_codebook(self, codes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of each codebook with its codes, flat."""
        books = [self._card.codebook_of(t) for t in range(len(codes))]
        for index, book in enumerate(self._card.codebooks):
            yield index, codes[[used is book for used in books]].ravel()


class _Histogram:
    """Occurrences of codes, without those that do not occur: a shard has few of the millions of a large codebook."""

    def __init__(self) -> None:
        self._codes = self._counts = np.empty(0, np.int64)
        self._tokens: list[np.ndarray] = []
        self._others: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def count(self, tokens: np.ndarray) -> None:
        """Count tokens ``n``."""
        self._tokens.append(tokens)
        self._wait(len(tokens))

    def add(self, codes: np.ndarray, counts: np.ndarray) -> None:
        """Add ``counts`` to the occurrences of ``codes``."""
        self._others.append((codes, counts))
        self._wait(len(codes))

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes that occur, ascending, and how often they do."""
        self._merge()
        return self._codes, self._counts

    def _wait(self, added: int) -> None:
        # Sorting many tokens at once costs less.
        self._waiting += added
        if self._waiting > max(_WAITING, len(self._codes)):
            self._merge()

    def _merge(self) -> None:
        if self._tokens:
            self._others.append(_count(np.concatenate(self._tokens)))
        if self._others:
            parts = zip((self._codes, self._counts), *self._others, strict=True)
            codes, counts = (np.concatenate(part) for part in parts)
            self._codes, at = np.unique(codes, return_inverse=True)
            # Exact: counts are far below 2^53.
            self._counts = np.bincount(at, weights=counts).astype(np.int64)
        self._tokens, self._others, self._waiting = [], [], 0

    def __getstate__(self) -> dict[str, Any]:
        self._merge()
        return self.__dict__


def _count(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes that occur, ascending, and how often they do."""
    # A table costs a tenth of sorting, unless the codebook is much larger than the tokens are many.
    if len(tokens) and tokens.max() < _WAITING:
        table = np.bincount(tokens)
        codes = np.flatnonzero(table)
        return codes, table[codes]
    return np.unique(tokens, return_counts=True)


def codebook_usage(name: str, size: int, counts: np.ndarray) -> CodebookUsage:
    """Usage of a codebook.

    Args:
        counts: occurrences of each code, in any order; codes that do not occur may be left out.
    """
    shares = counts[counts > 0] / max(counts.sum(), 1)
    perplexity = float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0
    return CodebookUsage(name, size, int((counts > 0).sum()), perplexity, int(counts.sum()))
