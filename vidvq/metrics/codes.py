"""Codebook usage: how many codes occur in tokens, and how evenly; in tokenization and in training."""

from dataclasses import dataclass
from math import log2

import numpy as np

from vidvq.formats.token_shard import TokenizerCard


@dataclass(frozen=True)
class CodebookUsage:
    """Usage of one codebook.

    Attributes:
        name: name of the codebook.
        size: number of codes.
        used: number of codes that occur.
        perplexity: perplexity of the distribution of codes, 1 to ``size``; 0 without tokens.
        tokens: number of tokens counted.
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
    """Occurrences of each code of each codebook, summed over grids.

    Attributes:
        counts: one int64 array ``size`` per codebook, in the order of the card.
    """

    def __init__(self, card: TokenizerCard) -> None:
        self._card = card
        self.counts = [np.zeros(book.size, dtype=np.int64) for book in card.codebooks]

    def add(self, codes: np.ndarray) -> None:
        """Count codes ``lt lh lw``, local to the codebook of their group."""
        for t, group in enumerate(codes):
            index = self._card.codebooks.index(self._card.codebook_of(t))
            self.counts[index] += np.bincount(group.ravel(), minlength=len(self.counts[index]))

    def merge(self, other: "CodeCounts") -> None:
        """Add the counts of another instance."""
        for own, more in zip(self.counts, other.counts, strict=True):
            own += more

    def entropy_bits(self, codes: np.ndarray) -> float:
        """Size of codes ``lt lh lw`` (bits) with an ideal code for the counted frequencies, without its table.

        This is the cross entropy of order 0: no context, and each codebook has its own distribution. All codes must
        have been counted.
        """
        bits = 0.0
        for t, group in enumerate(codes):
            counts = self.counts[self._card.codebooks.index(self._card.codebook_of(t))]
            bits -= float(np.log2(counts[group] / counts.sum()).sum())
        return bits

    def use(self) -> tuple[CodebookUsage, ...]:
        """Usage of each codebook."""
        return tuple(
            codebook_usage(book.name, book.size, counts)
            for book, counts in zip(self._card.codebooks, self.counts, strict=True)
        )


def codebook_usage(name: str, size: int, counts: np.ndarray) -> CodebookUsage:
    """Usage of a codebook.

    Args:
        name: name of the codebook.
        size: number of codes.
        counts: occurrences of each code, in any order; codes that do not occur may be left out.
    """
    shares = counts[counts > 0] / max(counts.sum(), 1)
    perplexity = float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0
    return CodebookUsage(name, size, int((counts > 0).sum()), perplexity, int(counts.sum()))
