"""Masks of hidden codes, for training and for estimates of bits per code."""

from collections.abc import Iterator
from math import pi

import torch
from torch import Tensor


def draw_mask(task: str, objective: str, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw the mask of a training sample.

    ``masked`` draws one ratio of hidden codes from the cosine schedule (Chang et al. 2022); with ``predict``, a prefix
    of random length stays visible. ``next`` draws a ratio per latent frame; with ``predict``, the first frame stays
    visible. Single latent frames have no prefix.

    Args:
        objective: ``masked`` or ``next``.
        shape: shape ``t h w`` of the sample.

    Returns:
        Mask ``t h w`` bool, True for hidden codes; at least one.
    """
    t, h, w = shape
    predicts = task == "predict" and t > 1
    if objective == "next":
        mask = _hide(torch.rand(t, generator=rng), (t, h * w), rng).reshape(shape)
        if predicts:
            mask[0] = False
        return mask
    mask = _hide(torch.rand((), generator=rng), (t * h * w,), rng).reshape(shape)
    if predicts:
        mask[: int(torch.randint(1, t, (), generator=rng))] = False
        if not mask.any():
            mask[-1, -1, -1] = True
    return mask


def _hide(draws: Tensor, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Hide random positions of each row, at least one; their ratio is the cosine schedule at ``draws`` (0 to 1)."""
    count = (torch.cos(draws * pi / 2) * shape[-1]).ceil().clamp(1, shape[-1])
    ranks = torch.rand(shape, generator=rng).argsort(-1).argsort(-1)
    return ranks < count[..., None]


def stratified_masks(
    shape: tuple[int, int, int, int], given: int, objective: str, draws: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield masks and weights that estimate the negative log-likelihood of a batch.

    The negative log-likelihood of ``n`` codes, revealed one by one in a random order, is at most ``n`` times the mean
    loss of a hidden code, averaged over numbers of hidden codes from 1 to ``n`` (Uria et al. 2014). ``draws`` evenly
    spaced numbers estimate that average. With ``next``, the order is random within each latent frame.

    Args:
        shape: shape ``b t h w`` of the batch.
        given: number of first latent frames that stay visible and do not count.
        objective: ``masked`` or ``next``.
        draws: number of masks to yield.

    Yields:
        Mask ``b t h w`` bool, True for hidden codes, and weights ``b t h w`` float. The weighted sum of the losses of
        the hidden codes, over all masks, is the estimate (nats).
    """
    b, t, h, w = shape
    rows, n = ((b, t - given), h * w) if objective == "next" else ((b,), (t - given) * h * w)
    shift = torch.rand(rows, generator=rng)
    for draw in range(draws):
        count = (((draw + shift) / draws) * n).floor().clamp(max=n - 1) + 1
        ranks = torch.rand(*rows, n, generator=rng).argsort(-1).argsort(-1)
        part = (ranks < count[..., None]).reshape(b, t - given, h, w)
        weight = (n / count / draws)[..., None].expand(*rows, n).reshape(b, t - given, h, w)
        visible = torch.zeros(b, given, h, w)
        yield torch.cat([visible.bool(), part], dim=1), torch.cat([visible, weight], dim=1)
