"""Bits per token of a generator, and of n-gram models to compare it with."""

from collections.abc import Iterable, Sequence
from math import log2

import numpy as np
import torch
from torch import Tensor

from vidvq.formats.token_shard import TokenizerCard
from vidvq.generate.examples import seeded_rng
from vidvq.generate.objectives import stratified_masks
from vidvq.generate.transformer import VideoTransformer


@torch.no_grad()
def position_nats(
    network: VideoTransformer,
    objective: str,
    codes: Tensor,
    given: int,
    draws: int,
    seeds: Sequence[str],
    **conditions: Tensor | None,
) -> Tensor:
    """Estimate the contribution of each code to an upper bound of the negative log-likelihood of a batch.

    Args:
        objective: ``masked`` or ``next``.
        codes: ``b t h w`` int64.
        given: number of first latent frames that are given; their codes do not count.
        draws: number of estimates to average.
        seeds: seed text of the estimates of each sample, which do not depend on the rest of the batch.
        **conditions: arguments of :meth:`VideoTransformer.condition`.

    Returns:
        ``b t h w`` float64 (nats); 0 for given codes.
    """
    total = torch.zeros(codes.shape, dtype=torch.float64, device=codes.device)
    _, t, h, w = codes.shape
    estimates = [stratified_masks((1, t, h, w), given, objective, draws, seeded_rng(seed)) for seed in seeds]
    for parts in zip(*estimates, strict=True):
        mask, weights = (torch.cat(each).to(codes.device) for each in zip(*parts, strict=True))
        nats = network(codes, mask, objective == "next", **conditions)
        at = chosen_positions(mask, network)
        total[at] += (nats * weights[at]).double()
    return total


def chosen_positions(chosen: Tensor, network: VideoTransformer) -> tuple[Tensor, ...]:
    """Return the indices of the chosen positions ``b t h w``, in the order of :meth:`VideoTransformer.nll`."""
    positions = chosen.nonzero()
    if len(network.codebooks) > 1:
        positions = positions[(positions[:, 1] > 0).long().argsort(stable=True)]
    return positions.unbind(1)


class NgramModels:
    """Unigram and bigram models of tokens, per codebook.

    ``unigram`` models the frequency of each code. ``bigram`` conditions on the previous code in raster order,
    ``temporal`` on the code at the same position of the previous latent frame; both back off to the unigram.
    """

    def __init__(self, card: TokenizerCard) -> None:
        self._card = card
        self._unigram = [np.zeros(book.size) for book in card.codebooks]
        self._totals = [0] * len(card.codebooks)
        self._pairs: dict[str, dict[tuple[int, int, int, int], int]] = {"bigram": {}, "temporal": {}}
        # For each context: the number of times it was seen, and of distinct codes that followed.
        self._contexts: dict[str, dict[tuple[int, int, int], list[int]]] = {"bigram": {}, "temporal": {}}

    def add(self, codes: np.ndarray) -> None:
        """Count the codes ``lt lh lw`` of a sample."""
        for book, frames in self._split_by_codebook(codes):
            np.add.at(self._unigram[book], frames.ravel(), 1)
            self._totals[book] += frames.size
        for kind, entries in self._with_context(codes):
            for context, code in entries:
                seen = self._contexts[kind].setdefault(context, [0, 0])
                count = self._pairs[kind].get((*context, code), 0)
                self._pairs[kind][*context, code] = count + 1
                seen[0] += 1
                seen[1] += not count

    def bits(self, samples: Iterable[np.ndarray], given: int = 0) -> dict[str, float]:
        """Return the mean bits per token by model.

        Args:
            samples: codes ``lt lh lw``.
            given: number of first latent frames that are context only.
        """
        sums = {"uniform": 0.0, "unigram": 0.0, "bigram": 0.0, "temporal": 0.0}
        tokens = 0
        for codes in samples:
            context = codes[:given].size
            tokens += codes.size - context
            for book, frames in self._split_by_codebook(codes, given):
                sums["uniform"] += frames.size * log2(self._card.codebooks[book].size)
                sums["unigram"] -= float(np.log2(self._unigram_probabilities(book, frames)).sum())
            for kind, entries in self._with_context(codes):
                sums[kind] += sum(self._bits(kind, *entry) for entry in entries[context:])
        return {name: bits / max(tokens, 1) for name, bits in sums.items()}

    def _bits(self, kind: str, context: tuple[int, int, int], code: int) -> float:
        unigram = float(self._unigram_probabilities(context[0], code))
        seen, followers = self._contexts[kind].get(context, (0, 0))
        # The weight of the unigram is the number of distinct followers (Witten and Bell 1991).
        count = self._pairs[kind].get((*context, code), 0)
        return -log2((count + max(followers, 1) * unigram) / (seen + max(followers, 1)))

    def _unigram_probabilities(self, book: int, codes: np.ndarray | int) -> np.ndarray:
        # Laplace smoothing: no code has probability 0.
        counts = self._unigram[book]
        return (counts[codes] + 1) / (self._totals[book] + len(counts))

    def _split_by_codebook(self, codes: np.ndarray, given: int = 0) -> list[tuple[int, np.ndarray]]:
        last = len(self._card.codebooks) - 1
        return [(0, codes[given:1]), (last, codes[max(given, 1) :])]

    def _with_context(self, codes: np.ndarray) -> Iterable[tuple[str, list[tuple[tuple[int, int, int], int]]]]:
        """Yield each model's contexts with the codes that follow.

        A context is the codebook of the code, then codebook and value of the code before it; -1 for none.
        """
        last = len(self._card.codebooks) - 1
        grid = np.broadcast_to(np.array([0] + [last] * (len(codes) - 1))[:, None, None], codes.shape)
        flat, books = codes.ravel().astype(int).tolist(), grid.ravel().tolist()
        area = codes.shape[1] * codes.shape[2]
        for kind, back in (("bigram", 1), ("temporal", area)):
            yield (
                kind,
                [
                    ((books[i], books[i - back] if i >= back else -1, flat[i - back] if i >= back else -1), code)
                    for i, code in enumerate(flat)
                ],
            )
