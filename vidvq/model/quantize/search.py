"""Nearest codes, and k-means to place them first."""

import torch
from torch import Tensor

_MAX_DISTANCES = 1 << 24
_KMEANS_ROUNDS = 12


@torch.no_grad()
def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of each latent in squared Euclidean distance; of equals, the first.

    Args:
        latents: ``n d`` float32.
        codebook: ``k d`` float32.

    Returns:
        ``n`` int64. Positions x codes is never held whole.
    """
    half_norms = codebook.square().sum(dim=1).mul(0.5)
    rows = max(_MAX_DISTANCES // len(codebook), 1)
    # |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x c): the first term is the same for every code.
    parts = [torch.addmm(half_norms, part, codebook.T, alpha=-1).argmin(dim=1) for part in latents.split(rows)]
    return torch.cat(parts) if parts else latents.new_zeros(0, dtype=torch.long)


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
