"""Bits per token of a generator, and of what anyone can do without one."""

from collections.abc import Iterable
from math import log2

import numpy as np
import torch
from torch import Tensor

from vidvq.formats.token_shard import TokenizerCard
from vidvq.generate.examples import seeded
from vidvq.generate.objectives import stratified_holes
from vidvq.generate.transformer import VideoTransformer


@torch.no_grad()
def sample_nats(
    network: VideoTransformer,
    objective: str,
    codes: Tensor,
    given: int,
    draws: int,
    seed: str,
    **conditions: Tensor | None,
) -> float:
    """Upper bound of the negative log-likelihood (nats) of all codes of a batch that are not given, estimated.

    Args:
        network: the transformer.
        objective: ``masked`` or ``next``.
        codes: ``b t h w`` int64.
        given: number of latent frames that are given.
        draws: number of estimates to average.
        seed: seed of the estimates.
        conditions: arguments of :meth:`VideoTransformer.condition`.
    """
    random, total = seeded(seed), 0.0
    b, t, h, w = codes.shape
    for holes, weights in stratified_holes((b, t, h, w), given, objective, draws, random):
        holes = holes.to(codes.device)
        nats = network(codes, holes, objective == "next", **conditions)
        total += float((nats * by_codebook(weights.to(codes.device), holes, network)).sum())
    return total


def by_codebook(values: Tensor, chosen: Tensor, network: VideoTransformer) -> Tensor:
    """Choose values ``b t h w`` in the order of :meth:`VideoTransformer.nll`."""
    if len(network.codebooks) == 1 or chosen.shape[1] == 1:
        return values[chosen]
    return torch.cat([values[:, :1][chosen[:, :1]], values[:, 1:][chosen[:, 1:]]])


class CountModels:
    """Unigram and bigrams over training tokens, by codebook, to compare a generator with.

    ``unigram`` knows how frequent each code is. ``bigram`` knows the code before it in raster order, ``temporal`` that
    at the same place one latent frame earlier; both fall back on the unigram where they have seen little.

    Args:
        card: card of the tokenizer.
    """

    def __init__(self, card: TokenizerCard) -> None:
        self._card = card
        self._unigram = [np.zeros(book.size) for book in card.codebooks]
        self._pairs: dict[str, dict[tuple[int, int, int, int], int]] = {"bigram": {}, "temporal": {}}
        # Of each context: how often it was seen, and how many different codes followed.
        self._contexts: dict[str, dict[tuple[int, int, int], list[int]]] = {"bigram": {}, "temporal": {}}

    def add(self, codes: np.ndarray) -> None:
        """Count the codes ``lt lh lw`` of a sample."""
        for book, frames in self._parts(codes):
            np.add.at(self._unigram[book], frames.ravel(), 1)
        for kind, entries in self._with_context(codes):
            for context, code in entries:
                seen = self._contexts[kind].setdefault(context, [0, 0])
                count = self._pairs[kind].get((*context, code), 0)
                self._pairs[kind][*context, code] = count + 1
                seen[0] += 1
                seen[1] += not count

    def bits(self, samples: Iterable[np.ndarray]) -> dict[str, float]:
        """Mean bits per token of samples ``lt lh lw``, by model."""
        sums = {"uniform": 0.0, "unigram": 0.0, "bigram": 0.0, "temporal": 0.0}
        tokens = 0
        for codes in samples:
            tokens += codes.size
            for book, frames in self._parts(codes):
                shares = self._shares(book)
                sums["uniform"] += frames.size * log2(self._card.codebooks[book].size)
                sums["unigram"] -= float(np.log2(shares[frames]).sum())
            for kind, entries in self._with_context(codes):
                sums[kind] += sum(self._bits(kind, context, code) for context, code in entries)
        return {name: bits / max(tokens, 1) for name, bits in sums.items()}

    def _bits(self, kind: str, context: tuple[int, int, int], code: int) -> float:
        unigram = float(self._shares(context[0])[code])
        seen, followers = self._contexts[kind].get(context, (0, 0))
        # The unigram weighs as much as different codes followed (Witten and Bell 1991).
        count = self._pairs[kind].get((*context, code), 0)
        return -log2((count + max(followers, 1) * unigram) / (seen + max(followers, 1)))

    def _shares(self, book: int) -> np.ndarray:
        counts = self._unigram[book]
        return (counts + 1) / (counts.sum() + len(counts))

    def _parts(self, codes: np.ndarray) -> list[tuple[int, np.ndarray]]:
        last = len(self._card.codebooks) - 1
        return [(0, codes[:1]), (last, codes[1:])] if len(codes) > 1 else [(0, codes)]

    def _with_context(self, codes: np.ndarray) -> Iterable[tuple[str, list[tuple[tuple[int, int, int], int]]]]:
        """Each code with its context: its codebook, and the codebook and code before it; -1 for none."""
        last = len(self._card.codebooks) - 1
        books = np.broadcast_to(np.array([0] + [last] * (len(codes) - 1))[:, None, None], codes.shape)
        flat, of = codes.ravel().astype(int).tolist(), books.ravel().tolist()
        area = codes.shape[1] * codes.shape[2]
        for kind, back in (("bigram", 1), ("temporal", area)):
            yield (
                kind,
                [
                    ((of[i], of[i - back] if i >= back else -1, flat[i - back] if i >= back else -1), code)
                    for i, code in enumerate(flat)
                ],
            )
