"""Embeddings and output heads of codebooks. A codebook of more than 65,536 codes is factorised into two digits.

A code of a factorised codebook is ``high * base + low`` (asymmetric token factorisation; Luo et al. 2024). Its
embedding is the sum of those of its digits. The head predicts the high digit, then the low digit given the high one, so
that the probabilities of all codes add up to one.
"""

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MAX_SIZE = 1 << 16
# Logits ``n k`` to digits ``n``.
Choose = Callable[[Tensor], Tensor]


def factorize(size: int, limit: int = _MAX_SIZE) -> tuple[int, ...]:
    """Return the number of values of each digit of a code, the most significant first.

    Args:
        size: number of codes of the codebook.
        limit: size up to which a codebook has one digit.
    """
    if size <= limit:
        return (size,)
    base = isqrt(size - 1) + 1
    return -(-size // base), base


class CodebookEmbedding(nn.Module):
    """Maps codes of one codebook to vectors.

    Args:
        size: number of codes.
        width: length of a vector.
        limit: size up to which a codebook is not factorised.

    Attributes:
        digits: number of values of each digit of a code.
    """

    def __init__(self, size: int, width: int, limit: int = _MAX_SIZE) -> None:
        super().__init__()
        self.digits = factorize(size, limit)
        self.tables = nn.ModuleList([nn.Embedding(count, width) for count in self.digits])
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes ``...`` int64 to vectors ``... c``."""
        vectors = [table(digit) for table, digit in zip(self.tables, split_digits(codes, self.digits), strict=True)]
        return torch.stack(vectors).sum(0)


class CodebookHead(nn.Module):
    """Predicts codes of one codebook from hidden vectors.

    Args:
        size: number of codes.
        width: length of a hidden vector.
        limit: size up to which a codebook is not factorised.
    """

    def __init__(self, size: int, width: int, limit: int = _MAX_SIZE) -> None:
        super().__init__()
        self.size, self.digits = size, factorize(size, limit)
        self.outputs = nn.ModuleList([nn.Linear(width, count) for count in self.digits])
        self.earlier = nn.Embedding(self.digits[0], width) if len(self.digits) > 1 else None

    def nll(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Return the negative log-likelihood (nats) of each code.

        Args:
            hidden: ``n c``.
            codes: ``n`` int64.
        """
        digits = split_digits(codes, self.digits)
        parts = [
            F.cross_entropy(self._logits(hidden, place, digits[0]).float(), digit, reduction="none")
            for place, digit in enumerate(digits)
        ]
        return torch.stack(parts).sum(0)

    def sample(self, hidden: Tensor, choose: Choose, unconditional: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """Choose a code for each hidden vector.

        Args:
            hidden: ``n c``.
            choose: picks a digit from each row of logits.
            unconditional: ``n c`` without the conditions, for classifier-free guidance; None for none.
            scale: guidance scale: 1 samples from the conditional distribution.

        Returns:
            Codes ``n`` int64.
        """
        codes = hidden.new_zeros(len(hidden), dtype=torch.int64)
        first: Tensor | None = None
        for place, count in enumerate(self.digits):
            logits = self._logits(hidden, place, first).float()
            if unconditional is not None:
                without = self._logits(unconditional, place, first).float()
                logits = torch.where(logits.isneginf(), logits, without + scale * (logits - without))
            digit = choose(logits)
            first = digit if first is None else first
            codes = codes * count + digit
        return codes

    def _logits(self, hidden: Tensor, place: int, first: Tensor | None) -> Tensor:
        if not place:
            return self.outputs[0](hidden)
        assert self.earlier is not None and first is not None
        logits = self.outputs[place](hidden + self.earlier(first))
        # The last high digit has fewer low digits where the size is not a product.
        beyond = first[:, None] * self.digits[1] + torch.arange(self.digits[1], device=hidden.device) >= self.size
        return logits.masked_fill(beyond, -torch.inf)


def split_digits(codes: Tensor, digits: tuple[int, ...]) -> list[Tensor]:
    """Split codes into digits, the most significant first."""
    if len(digits) == 1:
        return [codes]
    return [codes // digits[1], codes % digits[1]]
