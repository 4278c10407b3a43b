"""Bits per token on held-out tokens during training."""

from itertools import groupby
from math import log

import numpy as np
import torch
from torch import Tensor

from vidvq.data.tokens import collate, make_sample, read_token_index
from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.config import GenerateTrainConfig
from vidvq.generate.network.build import build_network
from vidvq.generate.training.likelihood import position_nats
from vidvq.training.distributed import DistributedContext, all_reduce_sum

# Number of estimates of bits per token to average.
_DRAWS = 4


class HeldOutLoss:
    """Bits per token on held-out samples, without conditions.

    Args:
        context: distributed context of this process; each rank evaluates its part of the samples.

    Raises:
        UsageError: the tokens have another tokenizer than the training data, or all samples are too large.
    """

    def __init__(self, config: GenerateTrainConfig, card: GeneratorCard, context: DistributedContext) -> None:
        assert config.held_out.tokens is not None
        index = read_token_index([config.held_out.tokens])
        if index.card.token_fingerprint != card.tokenizer.token_fingerprint:
            raise UsageError(
                f"held_out.tokens={config.held_out.tokens} has tokenizer {index.card.token_fingerprint[:12]}, "
                f"data.tokens has {card.tokenizer.token_fingerprint[:12]}; tokenize both with the same one"
            )
        self._card, self._context = card, context
        self._batch = config.data.micro_batch(context.size)
        lt, lh, lw = card.limits
        fitting = [i for i, grid in enumerate(index.grid) if grid[1] <= lh and grid[2] <= lw]
        if not fitting:
            raise UsageError(
                f"held_out.tokens={config.held_out.tokens} has no sample of at most {lh}x{lw} latents, the largest in "
                "data.tokens"
            )
        samples = []
        for i in fitting[: config.held_out.samples][context.rank :: context.size]:
            codes = index.locations[i].read(card.tokenizer)[0][:lt]
            samples.append(make_sample(index.locations[i].key, codes, np.arange(len(codes)), index.card))
        samples.sort(key=lambda sample: (sample.codes.shape, sample.key))
        self._samples = samples
        self._network = build_network(card).to(context.device).eval()

    def measure(self, weights: dict[str, Tensor]) -> float:
        """Return the mean bits per token with these weights. Collective: call on every rank."""
        self._network.load_state_dict(weights)
        nats, tokens = 0.0, 0
        for _, group in groupby(self._samples, key=lambda sample: sample.codes.shape):
            samples = list(group)
            # As many at once as in training, whose memory they have.
            for start in range(0, len(samples), self._batch):
                batch = collate(samples[start : start + self._batch])
                codes, seeds = batch.codes.to(self._context.device), [f"held out {key}" for key in batch.keys]
                found = position_nats(self._network, self._card.objective, codes, 0, _DRAWS, seeds)
                nats += float(found.sum())
                tokens += codes.numel()
        total = all_reduce_sum(torch.tensor([nats, tokens], dtype=torch.float64, device=self._context.device))
        return float(total[0] / total[1].clamp(min=1) / log(2))
