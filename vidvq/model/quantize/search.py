"""Nearest codes, and k-means to place them first."""

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

# Latents whose scores are held at a time, codes in a chunk, and chunks in a block: a block's scores fit a core's cache.
_ROWS, _CHUNK, _BLOCK = 512, 64, 16
_KMEANS_ROUNDS = 12


@torch.no_grad()
def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of each latent in squared Euclidean distance; of equals, the first.

    Args:
        latents: ``n d`` float32.
        codebook: ``k d`` float32.

    Returns:
        ``n`` int64. Positions x codes is never held: on a CUDA device a Triton kernel keeps the best code so far in
        registers, where Triton is installed; elsewhere blocks of both are compared, and the best of each chunk kept.
    """
    half_norms = codebook.square().sum(dim=1).mul(0.5)
    if latents.is_cuda and find_spec("triton") is not None:
        from vidvq.model.quantize.search_triton import nearest_fused

        return nearest_fused(latents, codebook, half_norms)
    return nearest_in_blocks(latents, codebook, half_norms)


def nearest_in_blocks(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """:func:`nearest` in plain torch; ``half_norms``: ``|c|^2 / 2`` of every code, ``k``."""
    # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2): the first term is the same for every code, the rest one product.
    rows = torch.cat([codebook, -half_norms[:, None]], dim=1)
    if over := -len(rows) % _CHUNK:
        rows = torch.cat([rows, rows[-1:].expand(over, -1)])
    chunks = rows.view(-1, _CHUNK, rows.shape[1])
    parts = [_nearest_of_few(part, chunks) for part in F.pad(latents, (0, 1), value=1.0).split(_ROWS)]
    # The copies that fill the last chunk are of the last code.
    return torch.cat(parts).clamp_(max=len(codebook) - 1) if parts else latents.new_zeros(0, dtype=torch.long)


def _nearest_of_few(latents: Tensor, chunks: Tensor) -> Tensor:
    """First the chunk, then the code in it: a maximum alone is much cheaper than one with its place."""
    columns = latents.T.contiguous()
    best = []
    held = latents.new_empty(_BLOCK * _CHUNK, len(latents))
    for block in chunks.split(_BLOCK):
        scores = torch.mm(block.flatten(0, 1), columns, out=held[: len(block) * _CHUNK])
        best.append(scores.view(len(block), _CHUNK, -1).amax(dim=1))
    chunk = torch.cat(best).argmax(dim=0)
    within = torch.bmm(chunks[chunk], latents[:, :, None]).squeeze(2).argmax(dim=1)
    return chunk * _CHUNK + within


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
