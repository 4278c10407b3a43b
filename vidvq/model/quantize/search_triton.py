"""Nearest-code search as a fused Triton kernel. Imported only by the search, on CUDA devices."""

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

# Latents of a program, and codes compared with them at a time. 64 latents of 40 channels took 4 times as long on an
# H200.
_ROWS, _CODES = 32, 64
# Number of programs that keeps a large GPU busy. With fewer latents, the codes are split among programs, each of which
# gets at least this many codes.
_PROGRAMS, _MIN_CODES = 512, 512
# Channels of a product: at least what `tl.dot` accepts, at most what leaves memory for several programs.
_MIN_DIM, _MAX_DIM = 16, 64
# Latents of a program that combines the results of splits.
_COMBINED = 128
_NO_CODE = tl.constexpr(2**31 - 1)


@triton.jit
def _load(vectors, index, channel, count, dim):
    return tl.load(vectors + index * dim + channel, mask=(index < count) & (channel < dim), other=0.0)


@triton.jit
def _nearest_kernel(
    latents,
    codebook,
    half_norms,
    out,
    scores,
    num_latents,
    num_codes,
    dim,
    share,
    rows: tl.constexpr,
    codes: tl.constexpr,
    part: tl.constexpr,
    parts: tl.constexpr,
    is_split: tl.constexpr,
):
    split = tl.program_id(1)
    row = (tl.program_id(0) * rows + tl.arange(0, rows)).to(tl.int64)
    channel = tl.arange(0, part)
    x = _load(latents, row[:, None], channel[None, :], num_latents, dim)
    # The best code of each lane. Reducing over the lanes once, at the end, costs far less than in each round.
    best = tl.full((rows, codes), float("-inf"), tl.float32)
    found = tl.full((rows, codes), _NO_CODE, tl.int32)
    for start in range(split * share, tl.minimum(split * share + share, num_codes), codes):
        code = start + tl.arange(0, codes)
        half = tl.load(half_norms + code, mask=code < num_codes, other=float("inf"))
        c = _load(codebook, code[None, :], channel[:, None], num_codes, dim)
        # TF32 is too coarse to separate close codes; three of its products are about as exact as one in fp32.
        score = tl.dot(x, c, input_precision="tf32x3")
        if parts > 1:
            for offset in range(part, parts * part, part):
                more = _load(latents, row[:, None], offset + channel[None, :], num_latents, dim)
                c = _load(codebook, code[None, :], offset + channel[:, None], num_codes, dim)
                score = tl.dot(more, c, score, input_precision="tf32x3")
        score -= half[None, :]
        better = score > best
        found = tl.where(better, code[None, :], found)
        best = tl.where(better, score, best)
    highest = tl.max(best, axis=1)
    first = tl.min(tl.where(best == highest[:, None], found, _NO_CODE), axis=1)
    # NaN latents match no code; code 0 keeps later lookups in range.
    first = tl.where(first == _NO_CODE, 0, first)
    index = split.to(tl.int64) * num_latents + row
    tl.store(out + index, first.to(tl.int64), mask=row < num_latents)
    if is_split:
        tl.store(scores + index, highest, mask=row < num_latents)


@triton.jit
def _first_best_kernel(found, scores, out, num_latents, splits, rows: tl.constexpr):
    row = (tl.program_id(0) * rows + tl.arange(0, rows)).to(tl.int64)
    inside = row < num_latents
    best = tl.load(scores + row, mask=inside, other=0.0)
    first = tl.load(found + row, mask=inside, other=0)
    for split in range(1, splits):
        index = tl.cast(split, tl.int64) * num_latents + row
        score = tl.load(scores + index, mask=inside, other=0.0)
        first = tl.where(score > best, tl.load(found + index, mask=inside, other=0), first)
        best = tl.maximum(best, score)
    tl.store(out + row, first, mask=inside)


def nearest_codes_fused(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Find the nearest code of each latent; ties resolve to the first code.

    Args:
        latents: ``n d`` float32 (n of 1 or more).
        codebook: ``k d`` float32.
        half_norms: ``|c|^2 / 2`` of each code, ``k``.

    Returns:
        Codes ``n`` int64.
    """
    count, dim = latents.shape
    out = torch.empty(count, dtype=torch.long, device=latents.device)
    blocks, part = triton.cdiv(count, _ROWS), min(max(triton.next_power_of_2(dim), _MIN_DIM), _MAX_DIM)
    splits = max(min(_PROGRAMS // blocks, len(codebook) // _MIN_CODES), 1)
    # A multiple of the codes of a round, so that each product has the same shape in all splits.
    share = triton.cdiv(triton.cdiv(len(codebook), splits), _CODES) * _CODES
    splits = triton.cdiv(len(codebook), share)
    found = out if splits == 1 else out.new_empty(splits, count)
    scores = latents.new_empty(splits, count) if splits > 1 else latents
    _nearest_kernel[(blocks, splits)](  # type: ignore[index]
        latents.contiguous(),
        codebook.contiguous(),
        half_norms,
        found,
        scores,
        count,
        len(codebook),
        dim,
        share,
        rows=_ROWS,
        codes=_CODES,
        part=part,
        parts=triton.cdiv(dim, part),
        is_split=splits > 1,
    )
    if splits > 1:
        _first_best_kernel[(triton.cdiv(count, _COMBINED),)](found, scores, out, count, splits, rows=_COMBINED)  # type: ignore[index]
    return out
