"""Which codes a generator can predict: bits per code, by code, time and place; and which codes it treats alike."""

from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.formats.code_statistics import BookStatistics, CodeStatistics
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.network.transformer import VideoTransformer

# Number of most frequent codes of a codebook that are described.
_MAX_CODES = 4096
# Number of nearest codes of each.
_NEAREST = 5


class CodeStatisticsCollector:
    """Sums of nats and counts over held-out clips."""

    def __init__(self, card: GeneratorCard) -> None:
        self._card = card
        self._nats = [np.zeros(book.size) for book in card.tokenizer.codebooks]
        self._counts = [np.zeros(book.size, dtype=np.int64) for book in card.tokenizer.codebooks]
        lt, lh, lw = card.limits
        self._grid, self._seen = np.zeros((lt, lh, lw)), np.zeros((lt, lh, lw), dtype=np.int64)

    def add(self, codes: np.ndarray, nats: Tensor, given: int) -> None:
        """Add a clip.

        Args:
            codes: ``lt lh lw``.
            nats: result of :func:`vidvq.generate.training.likelihood.position_nats` for it, ``lt lh lw``.
            given: number of first latent frames that were given.
        """
        values, books = nats.cpu().numpy(), self._card.tokenizer.codebooks
        for t in range(given, len(codes)):
            at = books.index(self._card.tokenizer.codebook_of(t))
            np.add.at(self._nats[at], codes[t].ravel(), values[t].ravel())
            np.add.at(self._counts[at], codes[t].ravel(), 1)
        part = np.s_[given : len(codes), : codes.shape[1], : codes.shape[2]]
        self._grid[part] += values[given:]
        self._seen[part] += 1

    def finish(self, network: VideoTransformer, fingerprint: str) -> CodeStatistics:
        """Return the statistics of all clips."""
        books = []
        for at, book in enumerate(self._card.tokenizer.codebooks):
            counts = self._counts[at]
            codes = np.argsort(-counts, kind="stable")[:_MAX_CODES]
            codes = codes[counts[codes] > 0]
            bits = self._nats[at][codes] / counts[codes] / log(2)
            nearest = _nearest_codes(network.embeddings[at], codes)
            books.append(BookStatistics(book.name, codes.tolist(), counts[codes].tolist(), bits.tolist(), nearest))
        return CodeStatistics(
            fingerprint,
            self._card.tokenizer.token_fingerprint,
            books,
            _mean_bits(self._grid.sum((1, 2)), self._seen.sum((1, 2))),
            [_mean_bits(row, seen) for row, seen in zip(self._grid.sum(0), self._seen.sum(0), strict=True)],
        )


@torch.no_grad()
def _nearest_codes(embedding: Any, codes: np.ndarray) -> list[list[int]]:
    """Return the codes with the most similar embeddings (cosine) for each of some codes, the most similar first."""
    if not len(codes):
        return []
    device = next(embedding.parameters()).device
    vectors = F.normalize(embedding(torch.from_numpy(codes).to(device)).float(), dim=-1)
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-torch.inf)
    found = similarity.topk(min(_NEAREST, len(codes) - 1), dim=-1).indices.cpu().numpy()
    return codes[found].tolist()


def _mean_bits(nats: np.ndarray, counts: np.ndarray) -> list[float | None]:
    return [float(total / count / log(2)) if count else None for total, count in zip(nats, counts, strict=True)]
