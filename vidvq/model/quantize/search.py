"""Nearest-code search, and k-means to initialize a codebook."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.model.kernels import HAS_TRITON

# Latents per block, codes per chunk, chunks per block: the scores of a block fit the cache of a core.
_ROWS, _CHUNK, _BLOCK = 512, 64, 16
_KMEANS_ROUNDS = 12


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Find the nearest code of each latent by squared Euclidean distance; ties resolve to the first code.

    The distances of all latents to all codes are never materialized. On CUDA devices a Triton kernel keeps the best
    code in registers if Triton is installed; otherwise blocks of latents and codes are compared.

    Args:
        latents: ``n d`` float32.
        codebook: ``k d`` float32.

    Returns:
        Codes ``n`` int64.
    """
    if not len(latents):
        # An image has no latents of later groups, and neither search takes an empty batch.
        return latents.new_zeros(0, dtype=torch.long)
    half_norms = codebook.square().sum(dim=1).mul(0.5)
    if latents.is_cuda and HAS_TRITON:
        return _nearest_codes_fused(latents, codebook, half_norms)
    return nearest_codes_blockwise(latents, codebook, half_norms)


# A custom operator, because torch.compile must not trace the launch of the kernel.
@torch.library.custom_op("vidvq::nearest_codes_fused", mutates_args=())
def _nearest_codes_fused(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    from vidvq.model.quantize.search_triton import nearest_codes_fused

    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device_of(latents):
        return nearest_codes_fused(latents, codebook, half_norms)


@_nearest_codes_fused.register_fake
def _(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    return latents.new_empty(len(latents), dtype=torch.long)


def nearest_codes_blockwise(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Compute :func:`nearest_codes` in plain torch.

    Args:
        latents: ``n d`` float32.
        codebook: ``k d`` float32.
        half_norms: ``|c|^2 / 2`` of each code, ``k``.

    Returns:
        Codes ``n`` int64.
    """
    # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2): the first term is constant, the rest is one matrix product.
    rows = torch.cat([codebook, -half_norms[:, None]], dim=1)
    if over := -len(rows) % _CHUNK:
        rows = torch.cat([rows, rows[-1:].expand(over, -1)])
    chunks = rows.view(-1, _CHUNK, rows.shape[1])
    parts = [_nearest_in_rows(part, chunks) for part in F.pad(latents, (0, 1), value=1.0).split(_ROWS)]
    # The last chunk is padded with copies of the last code.
    return torch.cat(parts).clamp_(max=len(codebook) - 1)


def _nearest_in_rows(latents: Tensor, chunks: Tensor) -> Tensor:
    """Find the best chunk, then the best code in it: a maximum is much cheaper than an argmax."""
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
    """Cluster latents with Lloyd's algorithm (Lloyd 1982).

    Args:
        latents: ``n d`` float32; if ``n < size``, initial centres repeat with a little noise.
        size: number of clusters.
        seed: seed of the initial centres; results are deterministic.

    Returns:
        Centres ``size d``.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(latents), generator=generator).to(latents.device)
    centres = latents[order[torch.arange(size, device=latents.device) % len(latents)]].clone()
    centres += 1e-3 * latents.std() * torch.randn(centres.shape, generator=generator).to(latents.device)
    for _ in range(_KMEANS_ROUNDS):
        codes = nearest_codes(latents, centres)
        counts = torch.zeros(size, device=latents.device).index_add_(
            0, codes, torch.ones_like(codes, dtype=torch.float)
        )
        sums = torch.zeros_like(centres).index_add_(0, codes, latents)
        used = counts > 0
        centres[used] = sums[used] / counts[used, None]
        # Restart empty clusters at random latents, so that every code is used.
        empty = int((~used).sum())
        if empty:
            chosen = torch.randint(len(latents), (empty,), generator=generator).to(latents.device)
            centres[~used] = latents[chosen]
    return centres
