"""Which codes are hidden, in training and to measure bits per code."""

from collections.abc import Iterator
from math import pi

import torch
from torch import Tensor


def draw_holes(task: str, objective: str, shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Draw the hidden positions ``b t h w`` of a training batch.

    ``masked`` hides a share of all codes that follows the cosine schedule of sampling (Chang et al. 2022), and with
    ``predict`` none of a prefix of random length. ``next`` draws a share for each latent frame; with ``predict``, the
    first frame is given.

    Args:
        task: name of the task.
        objective: ``masked`` or ``next``.
        shape: shape of the batch.
        generator: source of randomness.
    """
    b, t, h, w = shape
    if objective == "next":
        holes = _hide(torch.rand(b, t, generator=generator), (b, t, h * w), generator).reshape(shape)
        if task == "predict":
            holes[:, 0] = False
        return holes
    holes = _hide(torch.rand(b, generator=generator), (b, t * h * w), generator).reshape(shape)
    if task == "predict":
        given = torch.randint(1, t, (b,), generator=generator)
        hidden = torch.arange(t) >= given[:, None]
        holes &= hidden[:, :, None, None]
        # The last code of the last frame stands in where chance has hidden none of a sample's.
        holes[holes.flatten(1).sum(1) == 0, -1, -1, -1] = True
    return holes


def _hide(draws: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Hide a share of each row, at least one position: the cosine schedule at ``draws`` (0 to 1)."""
    count = (torch.cos(draws * pi / 2) * shape[-1]).ceil().clamp(1, shape[-1])
    ranks = torch.rand(shape, generator=generator).argsort(-1).argsort(-1)
    return ranks < count[..., None]


def stratified_holes(
    shape: tuple[int, int, int, int], given: int, objective: str, draws: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield hidden positions to estimate bits per code with, and the weight of each hidden code.

    A model that fills in codes in a random order has the likelihood of that order; its mean over orders is bounded by
    ``n`` times the mean, over the number of hidden codes from 1 to ``n``, of the mean loss of the hidden codes (Uria et
    al. 2014). ``draws`` evenly spread numbers estimate that mean. With ``next``, the order is random within each latent
    frame.

    Args:
        shape: shape ``b t h w`` of the batch.
        given: number of latent frames that are given.
        objective: ``masked`` or ``next``.
        draws: number of estimates.
        generator: source of randomness.

    Yields:
        Hidden positions, and weights: the weighted sum of the losses of the hidden codes, over all draws, estimates the
        nats of all codes that are not given.
    """
    b, t, h, w = shape
    rows, n = ((b, t - given), h * w) if objective == "next" else ((b,), (t - given) * h * w)
    shift = torch.rand(rows, generator=generator)
    for draw in range(draws):
        count = (((draw + shift) / draws) * n).floor().clamp(max=n - 1) + 1
        ranks = torch.rand(*rows, n, generator=generator).argsort(-1).argsort(-1)
        part = (ranks < count[..., None]).reshape(b, t - given, h, w)
        weight = (n / count / draws)[..., None].expand(*rows, n).reshape(b, t - given, h, w)
        none = torch.zeros(b, given, h, w)
        yield torch.cat([none.bool(), part], dim=1), torch.cat([none, weight], dim=1)
