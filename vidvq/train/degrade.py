"""Degradation of the encoder's input, for decoders that restore clean video: blur, noise, JPEG compression."""

from collections.abc import Sequence
from functools import cache

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vidvq.train.config import DegradeConfig

# Quantization tables of ITU-T T.81, annex K: luma and chroma.
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29),
    *(51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121),
    *(120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99),
    *([99] * 36),
)
_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_BLOCK = 8


@torch.no_grad()
def degrade(video: Tensor, config: DegradeConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Blur, add noise and compress each clip, with strengths drawn per clip.

    Args:
        video: ``b c t h w`` in [-1, 1].
        config: largest strengths.
        generators: source of randomness of each clip, on the device of the video.

    Returns:
        Degraded video of the same shape, in [-1, 1].
    """
    if not config.is_used:
        return video

    def uniform() -> Tensor:
        return torch.cat([torch.rand(1, generator=each, device=video.device) for each in generators])

    chosen, degraded = uniform() < config.clips, video.float()
    if config.blur:
        degraded = blur(degraded, config.blur * uniform(), config.blur)
    if config.noise:
        noise = torch.stack([torch.randn(video.shape[1:], generator=each, device=video.device) for each in generators])
        degraded = degraded + noise * (config.noise / 127.5 * uniform()).view(-1, 1, 1, 1, 1)
    degraded = degraded.clamp(-1, 1)
    if config.jpeg is not None:
        degraded = jpeg(degraded, config.jpeg + (100 - config.jpeg) * uniform()).clamp(-1, 1)
    return torch.where(chosen.view(-1, 1, 1, 1, 1), degraded, video).to(video.dtype)


def blur(video: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur the frames of each clip by a Gaussian; border pixels are repeated.

    Args:
        video: ``b c t h w``.
        sigma: standard deviation of each clip, ``b`` (pixels).
        largest: maximum of ``sigma`` (pixels).
    """
    radius = max(round(3 * largest), 1)
    offsets = torch.arange(-radius, radius + 1, device=video.device)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma.clamp(min=1e-3) ** 2)[:, None], dim=1)
    frames = F.pad(rearrange(video, "b c t h w -> (c t) b h w"), (radius,) * 4, mode="replicate")
    frames = F.conv2d(frames, kernel[:, None, :, None], groups=len(video))
    frames = F.conv2d(frames, kernel[:, None, None, :], groups=len(video))
    return rearrange(frames, "(c t) b h w -> b c t h w", c=video.shape[1])


def jpeg(video: Tensor, quality: Tensor) -> Tensor:
    """Compress each frame as JPEG does, without chroma subsampling.

    Args:
        video: RGB ``b c t h w`` in [-1, 1].
        quality: quality of each clip, ``b`` (1 to 100), as libjpeg scales its tables.
    """
    b, _, _, h, w = video.shape
    to_ycbcr, to_rgb, tables = _jpeg_constants(video.device)
    frames = torch.einsum("yc,bcthw->btyhw", to_ycbcr, video * 127.5)
    padded = F.pad(frames.flatten(0, 1), (0, -w % _BLOCK, 0, -h % _BLOCK), mode="replicate")
    blocks = rearrange(padded, "(b t) c (h p) (w q) -> b t h w c p q", b=b, p=_BLOCK, q=_BLOCK)
    basis = _cosines(video.device)
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    steps = ((tables * percent.view(-1, 1, 1, 1) + 50) / 100).floor().clamp(1, 255)[:, None, None, None]
    coefficients = torch.round(basis @ blocks @ basis.T / steps) * steps
    pixels = rearrange(basis.T @ coefficients @ basis, "b t h w c p q -> b t c (h p) (w q)")[..., :h, :w]
    return torch.einsum("cy,btyhw->bcthw", to_rgb, pixels) / 127.5


@cache
def _jpeg_constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices to and from YCbCr, and the quantization tables. Cached: their copies wait for the device."""
    to_ycbcr = torch.tensor(_YCBCR, device=device)
    tables = torch.tensor([_LUMA, _CHROMA, _CHROMA], device=device).view(3, _BLOCK, _BLOCK)
    return to_ycbcr, torch.linalg.inv(to_ycbcr), tables


def _cosines(device: torch.device) -> Tensor:
    """Return the orthonormal basis of the discrete cosine transform, one basis vector per row."""
    index = torch.arange(_BLOCK, device=device)
    basis = torch.cos(torch.pi * (2 * index + 1) * index[:, None] / (2 * _BLOCK)) * (2 / _BLOCK) ** 0.5
    basis[0] /= 2**0.5
    return basis
