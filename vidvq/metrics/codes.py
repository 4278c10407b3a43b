"""How tokens use the codebooks they are of: while they are made, and while a tokenizer is trained."""

from dataclasses import dataclass

import numpy as np

from vidvq.formats.token_shard import TokenizerCard


@dataclass(frozen=True)
class CodebookUse:
    """How the tokens use one codebook: codes that occur, and the perplexity of their distribution."""

    name: str
    size: int
    used: int
    perplexity: float
    tokens: int

    @property
    def share(self) -> float:
        """Of the codes, those that occur."""
        return self.used / self.size

    def line(self) -> str:
        """The same in plain words."""
        return f"{self.name} codebook: {self.used} of {self.size} codes in use, perplexity {self.perplexity:.0f}"


class CodeCounts:
    """How often each code of each codebook occurs, added up over grids.

    Attributes:
        counts: an array of ``size`` int64 for each codebook, in their order.
    """

    def __init__(self, card: TokenizerCard) -> None:
        self._card = card
        self.counts = [np.zeros(book.size, dtype=np.int64) for book in card.codebooks]

    def add(self, codes: np.ndarray) -> None:
        """Count local codes ``lt lh lw``."""
        for t, group in enumerate(codes):
            index = self._card.codebooks.index(self._card.codebook_of(t))
            self.counts[index] += np.bincount(group.ravel(), minlength=len(self.counts[index]))

    def merge(self, other: "CodeCounts") -> None:
        """Add what another has counted."""
        for own, more in zip(self.counts, other.counts, strict=True):
            own += more

    def use(self) -> tuple[CodebookUse, ...]:
        """The account of each codebook."""
        return tuple(use_of(book.name, counts) for book, counts in zip(self._card.codebooks, self.counts, strict=True))


def use_of(name: str, counts: np.ndarray) -> CodebookUse:
    """The account of a codebook whose codes occur so often; without tokens the perplexity is 0."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    perplexity = float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0
    return CodebookUse(name, len(counts), int((counts > 0).sum()), perplexity, int(counts.sum()))
