"""Nearest codes, and k-means to place them first."""

from importlib.util import find_spec

import torch
from torch import Tensor

# Latents and codes whose distances are held at a time: they fit a core's cache.
_ROWS, _CODES = 512, 1024
_KMEANS_ROUNDS = 12


@torch.no_grad()
def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of each latent in squared Euclidean distance; of equals, the first.

    Args:
        latents: ``n d`` float32.
        codebook: ``k d`` float32.

    Returns:
        ``n`` int64. Positions x codes is never held: on a CUDA device a Triton kernel keeps the best code so far in
        registers, where Triton is installed; elsewhere blocks of both are compared.
    """
    half_norms = codebook.square().sum(dim=1).mul(0.5)
    if latents.is_cuda and find_spec("triton") is not None:
        from vidvq.model.quantize.search_triton import nearest_fused

        return nearest_fused(latents, codebook, half_norms)
    return nearest_in_blocks(latents, codebook, half_norms)


def nearest_in_blocks(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """:func:`nearest` in plain torch; ``half_norms``: ``|c|^2 / 2`` of every code, ``k``."""
    parts = [_nearest_of_few(part, codebook, half_norms) for part in latents.split(_ROWS)]
    return torch.cat(parts) if parts else latents.new_zeros(0, dtype=torch.long)


def _nearest_of_few(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    best, codes = None, None
    for start in range(0, len(codebook), _CODES):
        stop = start + _CODES
        # |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x c): the first term is the same for every code.
        distances = torch.addmm(half_norms[start:stop], latents, codebook[start:stop].T, alpha=-1)
        least, index = distances.min(dim=1)
        if best is None or codes is None:
            best, codes = least, index
        else:
            codes = torch.where(least < best, index + start, codes)
            best = torch.minimum(least, best)
    assert codes is not None
    return codes


@torch.no_grad()
def kmeans(latents: Tensor, size: int, seed: int) -> Tensor:
    """Place ``size`` codes by Lloyd's algorithm (Lloyd 1982).

    Args:
        latents: ``n d`` float32; where ``n < size``, codes repeat with a little noise.
        size: number of codes.
        seed: of the start; the same latents and seed give the same codes.

    Returns:
        ``size d``.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(latents), generator=generator).to(latents.device)
    centres = latents[order[torch.arange(size, device=latents.device) % len(latents)]].clone()
    centres += 1e-3 * latents.std() * torch.randn(centres.shape, generator=generator).to(latents.device)
    for _ in range(_KMEANS_ROUNDS):
        codes = nearest(latents, centres)
        counts = torch.zeros(size, device=latents.device).index_add_(
            0, codes, torch.ones_like(codes, dtype=torch.float)
        )
        sums = torch.zeros_like(centres).index_add_(0, codes, latents)
        used = counts > 0
        centres[used] = sums[used] / counts[used, None]
        # An empty cell starts again at some latent, so that every code is worth its place.
        empty = int((~used).sum())
        if empty:
            chosen = torch.randint(len(latents), (empty,), generator=generator).to(latents.device)
            centres[~used] = latents[chosen]
    return centres
