"""Distances in pixels, and in what a wavelet transform makes of them."""

import torch
from torch import Tensor

_LEVELS = 2


def wavelet_l1(reconstruction: Tensor, video: Tensor) -> Tensor:
    """L1 between the details of two videos: what an orthonormal 2D Haar transform leaves beside the means.

    Args:
        reconstruction, video: ``b c t h w``; height and width are multiples of 4.

    Returns:
        the mean over two levels of the mean absolute difference of their detail coefficients.
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
