"""Bits per token of a generator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.training.examples import seeded_rng
from vidvq.generate.training.objectives import stratified_masks


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
