"""Code vectors of a tokenizer, with which the mean of a distribution over codes can be taken.

In a large codebook many codes have nearly equal vectors, so even the most probable one may have a probability of a
thousandth and lie far from the others. The mean of the code vectors has the least expected squared error.
"""

import torch
from torch import Tensor

from vidvq.model import Tokenizer

# Number of random contexts that a vector is averaged over.
_CONTEXTS = 64
# Number of code grids per lookup.
_LOOKUP = 1 << 14
# Code vectors ``k d`` of the values of each digit of the codes of a codebook.
DigitVectors = list[Tensor]


@torch.no_grad()
def code_vectors(tokenizer: Tokenizer, digits: list[tuple[int, ...]]) -> list[DigitVectors]:
    """Return the code vector of each value of each digit, for each codebook.

    The contribution of a code to the latents may depend on the codes before it, and that of a digit on the other
    digits. Vectors are therefore means over random contexts, the same for all codes of a codebook.

    Args:
        digits: number of values of each digit, by codebook; see :func:`vidvq.generate.network.vocabulary.factorize`.

    Raises:
        UsageError: the tokenizer does not expose its latents.
    """
    rng, books = torch.Generator().manual_seed(0), tokenizer.codebooks
    found: list[DigitVectors] = []
    for at, counts in enumerate(digits):
        tables = []
        for index, count in enumerate(counts):
            values, total = torch.arange(count), torch.zeros(())
            for _ in range(_CONTEXTS):
                codes = torch.zeros_like(values)
                for other, size in enumerate(counts):
                    codes = codes * size + (values if other == index else torch.randint(size, (1,), generator=rng))
                # The last value of the first digit has fewer values of the second if the size is not a product.
                codes = codes.clamp(max=books[at].size - 1)
                before = torch.randint(books[0].size, (1,), generator=rng).expand_as(codes)
                total = total + _look_up(tokenizer, [before, codes] if at else [codes])
            tables.append(total / _CONTEXTS)
        found.append(tables)
    return found


def _look_up(tokenizer: Tokenizer, codes: list[Tensor]) -> Tensor:
    """Return the latents ``n d`` of the last of consecutive codes ``n``."""
    grids = torch.stack(codes, dim=1)[..., None, None].to(tokenizer.device)
    return torch.cat([tokenizer.latents(part)[:, :, -1, 0, 0] for part in grids.split(_LOOKUP)])


def nearest_to_mean(scores: Tensor, vectors: Tensor) -> Tensor:
    """Return the digits whose code vectors are nearest to the means of distributions.

    Args:
        scores: log-probabilities ``n k``; minus infinity for digits that are not allowed.
        vectors: code vectors ``k d`` of the digits.

    Returns:
        Digits ``n`` int64.
    """
    means = scores.softmax(-1) @ vectors
    # Squared distances, less the term that all digits share.
    distances = vectors.square().sum(-1) - 2 * means @ vectors.T
    return distances.masked_fill(scores.isneginf(), torch.inf).argmin(-1)
