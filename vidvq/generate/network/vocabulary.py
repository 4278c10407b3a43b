"""Embeddings and output heads of codebooks. A codebook of more than 65,536 codes is factorised into two digits.

A code of a factorised codebook is ``high * base + low`` (asymmetric token factorisation; Luo et al. 2024). Its
embedding is the sum of the embeddings of its digits. The head predicts the high digit, then the low digit given the
high one, so the probabilities of all codes sum to one.
"""

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.generate.network.previous import UNKNOWN, add_copies

_MAX_SIZE = 1 << 16
# Samples digits ``n`` from logits ``n k`` of the digit with an index.
SampleDigit = Callable[[Tensor, int], Tensor]


def factorize(size: int, limit: int = _MAX_SIZE) -> tuple[int, ...]:
    """Return the number of values of each digit of a code, most significant digit first.

    Args:
        limit: largest codebook that has a single digit (codes).
    """
    if size <= limit:
        return (size,)
    base = isqrt(size - 1) + 1
    return -(-size // base), base


class CodebookEmbedding(nn.Module):
    """Embedding of the codes of one codebook.

    Attributes:
        digits: number of values of each digit of a code.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.digits = factorize(size)
        self.tables = nn.ModuleList([nn.Embedding(count, width) for count in self.digits])
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes ``...`` int64 to vectors ``... c``."""
        vectors = [table(digit) for table, digit in zip(self.tables, split_digits(codes, self.digits), strict=True)]
        return torch.stack(vectors).sum(0)


class CodebookHead(nn.Module):
    """Output head that predicts the codes of one codebook from hidden vectors.

    Args:
        width: length of a hidden vector.
        limit: largest codebook that is not factorised (codes).
        copies: number of candidates that a code can be copied from; 0 for none.
    """

    def __init__(self, size: int, width: int, limit: int = _MAX_SIZE, copies: int = 0) -> None:
        super().__init__()
        self.size, self.digits = size, factorize(size, limit)
        self.outputs = nn.ModuleList([nn.Linear(width, count) for count in self.digits])
        self.earlier = nn.Embedding(self.digits[0], width) if len(self.digits) > 1 else None
        self.gates = nn.Linear(width, copies) if copies else None
        if self.gates is not None:
            nn.init.zeros_(self.gates.weight)
            nn.init.zeros_(self.gates.bias)

    def nll(self, hidden: Tensor, codes: Tensor, copies: Tensor | None = None) -> Tensor:
        """Return the negative log-likelihood (nats) of each code.

        Args:
            hidden: hidden vectors ``n c``.
            codes: ``n`` int64.
            copies: candidates ``n m`` int64 to copy a code from, ``UNKNOWN`` for none; None turns copying off.
        """
        digits = split_digits(codes, self.digits)
        parts = [
            F.cross_entropy(self._logits(hidden, index, digits[0], copies).float(), digit, reduction="none")
            for index, digit in enumerate(digits)
        ]
        return torch.stack(parts).sum(0)

    def sample(
        self,
        hidden: Tensor,
        sample_digit: SampleDigit,
        copies: Tensor | None = None,
        unconditional: tuple[Tensor, Tensor | None] | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Sample a code for each hidden vector.

        Args:
            hidden: hidden vectors ``n c``.
            sample_digit: samples a digit from each row of logits ``n k``; takes the index of the digit too.
            copies: candidates ``n m`` int64 to copy a code from, ``UNKNOWN`` for none; None turns copying off.
            unconditional: hidden vectors and candidates without conditions, for classifier-free guidance; None turns it
                off.
            scale: guidance scale (0 or more); 1 samples from the conditional distribution.

        Returns:
            Codes ``n`` int64.
        """
        codes = hidden.new_zeros(len(hidden), dtype=torch.int64)
        first: Tensor | None = None
        for index, count in enumerate(self.digits):
            logits = self._logits(hidden, index, first, copies).float()
            if unconditional is not None:
                without = self._logits(unconditional[0], index, first, unconditional[1]).float()
                logits = torch.where(logits.isneginf(), logits, without + scale * (logits - without))
            digit = sample_digit(logits, index)
            first = digit if first is None else first
            codes = codes * count + digit
        return codes

    def _logits(self, hidden: Tensor, index: int, first: Tensor | None, copies: Tensor | None) -> Tensor:
        if not index:
            return self._add_copies(self.outputs[0](hidden), hidden, copies, None)
        assert self.earlier is not None and first is not None
        logits = self._add_copies(self.outputs[index](hidden + self.earlier(first)), hidden, copies, first)
        # The last high digit has fewer low digits if the size is not a product.
        invalid = first[:, None] * self.digits[1] + torch.arange(self.digits[1], device=hidden.device) >= self.size
        return logits.masked_fill(invalid, -torch.inf)

    def _add_copies(self, logits: Tensor, hidden: Tensor, copies: Tensor | None, first: Tensor | None) -> Tensor:
        """Raise the logits of the digits of candidates; ``first`` are the chosen high digits, for low digits."""
        if self.gates is None or copies is None:
            return logits
        digits = copies
        if len(self.digits) > 1:
            high, low = split_digits(copies, self.digits)
            fits = copies != UNKNOWN
            # A low digit is a candidate if its high digit was chosen.
            digits = torch.where(fits if first is None else fits & (high == first[:, None]), low, UNKNOWN)
            digits = torch.where(fits, high, UNKNOWN) if first is None else digits
        return add_copies(logits, digits, self.gates(hidden))


def split_digits(codes: Tensor, digits: tuple[int, ...]) -> list[Tensor]:
    """Split codes into digits, most significant first."""
    if len(digits) == 1:
        return [codes]
    return [codes // digits[1], codes % digits[1]]
