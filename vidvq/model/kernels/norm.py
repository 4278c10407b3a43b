"""Layer norm, optionally followed by SiLU, as Triton kernels with gradients. Imported on CUDA devices.

torch's kernel spends a block of threads on each row, and these rows are short. The backward pass needs only the input.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

# Values of a tile, which stay in registers, and programs among which the backward pass divides the tiles.
_TILE, _PROGRAMS = 2048, 1024


@triton.jit
def _normalize(x, bias, row, column, num_rows, eps, channels: tl.constexpr):
    inside = (row < num_rows)[:, None] & (column < channels)[None, :]
    values = tl.load(x + row.to(tl.int64)[:, None] * channels + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        values += tl.load(bias + column, mask=column < channels, other=0.0)[None, :]
    centred = tl.where(inside, values - (tl.sum(values, axis=1) / channels)[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    return centred * inverse[:, None], inverse, inside


@triton.jit
def _forward_kernel(
    x,
    bias,
    gain,
    shift,
    eps,
    out,
    num_rows,
    activated: tl.constexpr,
    channels: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    row, column = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, columns)
    normed, _, inside = _normalize(x, bias, row, column, num_rows, eps, channels)
    known = column < channels
    scaled = normed * tl.load(gain + column, mask=known, other=0.0)[None, :]
    scaled += tl.load(shift + column, mask=known, other=0.0)[None, :]
    at = row.to(tl.int64)[:, None] * channels + column[None, :]
    if activated:
        scaled *= tl.sigmoid(scaled)
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    gradient,
    x,
    bias,
    gain,
    shift,
    eps,
    out,
    sums,
    num_rows,
    activated: tl.constexpr,
    channels: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    column = tl.arange(0, columns)
    known = column < channels
    factor = tl.load(gain + column, mask=known, other=0.0)[None, :]
    offset = tl.load(shift + column, mask=known, other=0.0)[None, :]
    to_gain, to_shift = tl.zeros((rows, columns), tl.float32), tl.zeros((rows, columns), tl.float32)
    to_bias = tl.zeros((rows, columns), tl.float32)
    for start in range(tl.program_id(0) * rows, num_rows, tl.num_programs(0) * rows):
        row = start + tl.arange(0, rows)
        normed, inverse, inside = _normalize(x, bias, row, column, num_rows, eps, channels)
        at = row.to(tl.int64)[:, None] * channels + column[None, :]
        slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        if activated:
            scaled = normed * factor + offset
            gate = tl.sigmoid(scaled)
            slope *= gate * (1 + scaled * (1 - gate))
        to_gain += slope * normed
        to_shift += slope
        slope *= factor
        mean, along = tl.sum(slope, axis=1) / channels, tl.sum(slope * normed, axis=1) / channels
        result = (slope - mean[:, None] - normed * along[:, None]) * inverse[:, None]
        # Rows and columns beyond the input have no gradient.
        to_bias += tl.where(inside, result, 0.0)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
    target = sums + tl.program_id(0) * 3 * channels + column
    tl.store(target, tl.sum(to_gain, axis=0), mask=known)
    tl.store(target + channels, tl.sum(to_shift, axis=0), mask=known)
    tl.store(target + 2 * channels, tl.sum(to_bias, axis=0), mask=known)


class FusedNorm(torch.autograd.Function):
    """Maps ``... c`` to its layer norm or the SiLU of it; statistics are fp32. It has no second derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, gain: Tensor, shift: Tensor, eps: float, activated: bool
    ) -> Tensor:
        """Normalize ``x + bias``; all weights are ``c`` fp32, and None adds nothing."""
        x = x.contiguous()
        ctx.save_for_backward(x, bias, gain, shift)
        ctx.eps, ctx.activated, out = eps, activated, torch.empty_like(x)
        num_rows, tile = _tile(x)
        # Triton launches on the current device, whichever the tensors are on.
        with torch.cuda.device_of(x):
            grid = (triton.cdiv(num_rows, tile["rows"]),)
            _forward_kernel[grid](x, bias, gain, shift, eps, out, num_rows, activated, **tile)  # type: ignore[index]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, None, None]:  # type: ignore[override]
        """Return the gradients of the input, bias, gain and shift."""
        x, bias, gain, shift = ctx.saved_tensors
        out, (num_rows, tile) = torch.empty_like(x), _tile(x)
        grid = (min(triton.cdiv(num_rows, tile["rows"]), _PROGRAMS),)
        sums = torch.empty(*grid, 3, x.shape[-1], device=x.device)
        given = gradient.contiguous(), x, bias, gain, shift
        with torch.cuda.device_of(x):
            _backward_kernel[grid](*given, ctx.eps, out, sums, num_rows, ctx.activated, **tile)  # type: ignore[index]
        to_gain, to_shift, to_bias = sums.sum(dim=0)
        return out, None if bias is None else to_bias, to_gain, to_shift, None, None


def _tile(x: Tensor) -> tuple[int, dict[str, int]]:
    """Return the rows of ``... c``, and the constants of a kernel."""
    channels = x.shape[-1]
    columns = triton.next_power_of_2(channels)
    return x.numel() // channels, {"channels": channels, "rows": max(_TILE // columns, 1), "columns": columns}
