"""Nearest-code search as a fused Triton kernel. Imported only by the search, on CUDA devices."""

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

_ROWS, _CODES = 64, 64
# Smallest inner dimension that `tl.dot` accepts.
_MIN_DIM = 16


@triton.jit
def _nearest_kernel(
    latents,
    codebook,
    half_norms,
    out,
    num_latents,
    num_codes,
    dim,
    rows: tl.constexpr,
    codes: tl.constexpr,
    padded_dim: tl.constexpr,
):
    row = (tl.program_id(0) * rows + tl.arange(0, rows)).to(tl.int64)
    channel = tl.arange(0, padded_dim)
    x = tl.load(
        latents + row[:, None] * dim + channel[None, :],
        mask=(row[:, None] < num_latents) & (channel[None, :] < dim),
        other=0.0,
    )
    best = tl.full((rows,), float("inf"), tl.float32)
    found = tl.zeros((rows,), tl.int32)
    for start in range(0, num_codes, codes):
        code = start + tl.arange(0, codes)
        c = tl.load(
            codebook + code[None, :] * dim + channel[:, None],
            mask=(code[None, :] < num_codes) & (channel[:, None] < dim),
            other=0.0,
        )
        half = tl.load(half_norms + code, mask=code < num_codes, other=float("inf"))
        # TF32 is too coarse to separate close codes.
        distance = half[None, :] - tl.dot(x, c, input_precision="ieee")
        least = tl.min(distance, axis=1)
        index = tl.argmin(distance, axis=1, tie_break_left=True) + start
        found = tl.where(least < best, index, found)
        best = tl.minimum(least, best)
    tl.store(out + row, found.to(tl.int64), mask=row < num_latents)


def nearest_codes_fused(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Find the nearest code of each latent; ties resolve to the first code.

    Args:
        latents: ``n d`` float32.
        codebook: ``k d`` float32.
        half_norms: ``|c|^2 / 2`` of each code, ``k``.

    Returns:
        Codes ``n`` int64.
    """
    found = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
    if len(latents):
        _nearest_kernel[(triton.cdiv(len(latents), _ROWS),)](  # type: ignore[index]
            latents.contiguous(),
            codebook.contiguous(),
            half_norms,
            found,
            len(latents),
            len(codebook),
            latents.shape[1],
            rows=_ROWS,
            codes=_CODES,
            padded_dim=max(triton.next_power_of_2(latents.shape[1]), _MIN_DIM),
        )
    return found
