"""L1 distance of wavelet coefficients."""

import torch
from torch import Tensor

_LEVELS = 2


def wavelet_l1(reconstruction: Tensor, video: Tensor) -> Tensor:
    """Compute the L1 distance of the detail coefficients of two videos under a two-level 2D Haar transform.

    Args:
        reconstruction: video ``b c t h w``; height and width are multiples of 4.
        video: video of the same shape.

    Returns:
        Mean absolute difference of detail coefficients, averaged over the levels (a scalar).
    """
    means = reconstruction - video
    losses: list[Tensor] = []
    for _ in range(_LEVELS):
        top, bottom = means[..., 0::2, :], means[..., 1::2, :]
        low, high = (top + bottom) / 2**0.5, (top - bottom) / 2**0.5
        bands = [_columns(low, -1), _columns(high, 1), _columns(high, -1)]
        losses.append(torch.stack([band.abs().mean() for band in bands]).mean())
        means = _columns(low, 1)
    return torch.stack(losses).mean()


def _columns(x: Tensor, sign: int) -> Tensor:
    return (x[..., 0::2] + sign * x[..., 1::2]) / 2**0.5
