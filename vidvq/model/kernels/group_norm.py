"""Group norm and leaky ReLU of channels-last activations as Triton kernels, with gradients. Imported on CUDA devices.

torch's GPU kernel for group norm would transpose input and output.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

# Values of a tile, which stay in registers, and programs among which sums are divided.
_TILE, _PROGRAMS = 2048, 1024


@triton.jit
def _load(x, row, column, positions, channels: tl.constexpr):
    inside = (row < positions)[:, None] & (column < channels)[None, :]
    at = (tl.program_id(1).to(tl.int64) * positions + row)[:, None] * channels + column[None, :]
    return tl.load(x + at, mask=inside, other=0.0).to(tl.float32), at, inside


@triton.jit
def _load_channels(values, column, channels: tl.constexpr):
    return tl.load(values + tl.program_id(1) * channels + column, mask=column < channels, other=0.0)[None, :]


@triton.jit
def _sums_kernel(
    gradient,
    x,
    scale,
    shift,
    negative,
    sums,
    positions,
    channels: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    column = tl.arange(0, columns)
    plain, product = tl.zeros((rows, columns), tl.float32), tl.zeros((rows, columns), tl.float32)
    for start in range(tl.program_id(0) * rows, positions, tl.num_programs(0) * rows):
        row = start + tl.arange(0, rows)
        values, _, _ = _load(x, row, column, positions, channels)
        weights = values
        if gradient is not None:
            weights, _, _ = _load(gradient, row, column, positions, channels)
            output = values * _load_channels(scale, column, channels) + _load_channels(shift, column, channels)
            weights *= tl.where(output > 0, 1.0, negative)
        plain += weights
        product += weights * values
    target = sums + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + column
    tl.store(target, tl.sum(plain, axis=0), mask=column < channels)
    tl.store(target + channels, tl.sum(product, axis=0), mask=column < channels)


@triton.jit
def _apply_kernel(
    gradient,
    x,
    scale,
    shift,
    slope,
    offset,
    negative,
    out,
    positions,
    channels: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    row, column = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, columns)
    values, at, inside = _load(x, row, column, positions, channels)
    factor = _load_channels(scale, column, channels)
    output = values * factor + _load_channels(shift, column, channels)
    gate = tl.where(output > 0, 1.0, negative)
    result = output * gate
    if gradient is not None:
        weights, _, _ = _load(gradient, row, column, positions, channels)
        result = weights * gate * factor + values * _load_channels(slope, column, channels)
        result += _load_channels(offset, column, channels)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


class GroupNormLeakyRelu(torch.autograd.Function):
    """Maps ``b c t h w`` to the leaky ReLU of its group norm (Wu and He 2018); output and gradient are channels last.

    Statistics and sums are fp32. It has no second derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, negative: float) -> Tensor:
        """Normalize and activate ``x``; ``weight`` and ``bias`` are ``c`` fp32, ``negative`` is the slope below 0."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        # Sums of channels are b g c/g, statistics b g 1.
        plain, square = _sums(x, None, (None, None), negative).unflatten(2, (groups, -1)).unbind(1)
        count = plain.shape[2] * x[0, 0].numel()
        mean = plain.sum(2, keepdim=True) / count
        square = square.sum(2, keepdim=True) / count
        inverse = torch.addcmul(square, mean, mean, value=-1).clamp(min=0).add(eps).rsqrt()
        scale = inverse * weight.unflatten(0, (groups, -1))
        shift = torch.addcmul(bias.unflatten(0, (groups, -1)), mean, scale, value=-1)
        ctx.save_for_backward(x, mean, inverse, scale, shift)
        ctx.negative = negative
        return _apply(x, None, (scale, shift, None, None), negative)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:  # type: ignore[override]
        """Return the gradients of the input, weight and bias."""
        x, mean, inverse, scale, shift = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        sums = _sums(x, gradient, (scale, shift), ctx.negative)
        plain, product = sums.unflatten(2, scale.shape[1:]).unbind(1)
        count = scale.shape[2] * x[0, 0].numel()
        # From sums with x to sums with normalized x.
        product = torch.addcmul(product, mean, plain, value=-1) * inverse
        slope = (product * scale).sum(2, keepdim=True) * inverse / -count
        offset = (plain * scale).sum(2, keepdim=True) / -count - slope * mean
        slope, offset = (values.expand_as(scale).contiguous() for values in (slope, offset))
        out = _apply(x, gradient, (scale, shift, slope, offset), ctx.negative)
        return out, product.sum(0).flatten(), plain.sum(0).flatten(), None, None, None


def _sums(x: Tensor, gradient: Tensor | None, affine: tuple[Tensor | None, ...], negative: float) -> Tensor:
    """Return sums over positions, ``b 2 c``: of x and its square, or of the norm's gradient and its product with x.

    Args:
        x: input of the norm.
        gradient: gradient of the activation; None sums the input.
        affine: scale and shift of the norm, for its gradient.
        negative: slope of the activation below 0.
    """
    positions, tile = _tile(x)
    grid = (min(triton.cdiv(positions, tile["rows"]), triton.cdiv(_PROGRAMS, len(x))), len(x))
    sums = torch.empty(len(x), grid[0], 2, x.shape[1], device=x.device)
    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device_of(x):
        _sums_kernel[grid](gradient, x, *affine, negative, sums, positions, **tile)  # type: ignore[index]
    return sums.sum(1)


def _apply(x: Tensor, gradient: Tensor | None, affine: tuple[Tensor | None, ...], negative: float) -> Tensor:
    (positions, tile), out = _tile(x), torch.empty_like(x)
    grid = (triton.cdiv(positions, tile["rows"]), len(x))
    with torch.cuda.device_of(x):
        _apply_kernel[grid](gradient, x, *affine, negative, out, positions, **tile)  # type: ignore[index]
    return out


def _tile(x: Tensor) -> tuple[int, dict[str, int]]:
    """Return the positions of ``b c t h w``, and the constants of a kernel."""
    channels = x.shape[1]
    columns = triton.next_power_of_2(channels)
    return x[0, 0].numel(), {"channels": channels, "rows": max(_TILE // columns, 1), "columns": columns}
