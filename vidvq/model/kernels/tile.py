"""Launch of a kernel, and the epilogue with which each of its programs stores a tile of the output."""

from math import prod
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor, nn

# Smallest width that `tl.dot` accepts.
_MIN_WIDTH = 16


class Result(NamedTuple):
    """Output of a layer.

    Attributes:
        sums: the output, ``... c``; empty if only its activation is used.
        activated: SiLU of its layer norm, ``... c``; empty without a norm.
    """

    sums: Tensor
    activated: Tensor


@triton.jit
def store_tile(
    sums, row, num_rows, bias, residual, out, gain, shift, eps, activated, outputs: tl.constexpr, columns: tl.constexpr
):
    """Add bias and residual to a tile, and store it, its activation, or both.

    The epilogue normalizes and activates each value once; the prologue of the next convolution would do so nine times.

    Args:
        sums: ``rows columns`` float32; columns from ``outputs`` on are zero.
        row: index of each row in the output.
        num_rows: rows of the output.
        bias: ``outputs``, or None.
        residual: ``num_rows outputs``, or None.
        out: ``num_rows outputs``, or None.
        gain: weight of the layer norm, ``outputs``, or None.
        shift: bias of the layer norm, ``outputs``, or None.
        eps: epsilon of the layer norm.
        activated: ``num_rows outputs``, or None.
        outputs: channels of the output.
        columns: ``outputs``, rounded up to a power of two.
    """
    column = tl.arange(0, columns)
    known = column < outputs
    at = row.to(tl.int64)[:, None] * outputs + column[None, :]
    inside = (row < num_rows)[:, None] & known[None, :]
    if bias is not None:
        sums += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        sums += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if out is not None:
        tl.store(out + at, sums.to(out.dtype.element_ty), mask=inside)
    if activated is not None:
        mean = tl.sum(sums, axis=1) / outputs
        centred = tl.where(known[None, :], sums - mean[:, None], 0.0)
        variance = tl.sum(centred * centred, axis=1) / outputs
        normed = centred * tl.rsqrt(variance + eps)[:, None]
        normed *= tl.load(gain + column, mask=known, other=0.0).to(tl.float32)[None, :]
        normed += tl.load(shift + column, mask=known, other=0.0).to(tl.float32)[None, :]
        tl.store(activated + at, (normed * tl.sigmoid(normed)).to(activated.dtype.element_ty), mask=inside)


def launch(
    kernel: Any,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    geometry: tuple[Any, ...] = (),
    residual: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
    keep: bool = True,
    **constants: int,
) -> Result:
    """Run the kernel of a layer. Tiles depend on the channels and the type, never on the number of rows.

    Args:
        kernel: the kernel.
        x: input, ``... i``.
        weights: ``o taps i``, or a view of that order in memory.
        bias: ``o``, or None.
        shape: shape of the output, ``... o``.
        geometry: arguments that locate the taps of a row.
        residual: added to the output, ``... o``.
        norm: layer norm of the activation; None computes no activation.
        keep: store the output itself.
        **constants: compile-time constants.
    """
    outputs, half = shape[-1], x.dtype != torch.float32
    columns = max(triton.next_power_of_2(outputs), _MIN_WIDTH)
    # The sums of a tile stay in registers, and three tiles of each factor fit the 99 KiB of shared memory that consumer
    # GPUs have.
    rows, inner = (128 if columns <= 256 else 64) if half else 32, (64 if half else 32) // (1 if columns <= 256 else 2)
    result = Result(x.new_empty(shape if keep else 0), x.new_empty(shape if norm is not None else 0))
    num_rows = prod(shape[:-1])
    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device_of(x):
        kernel[(triton.cdiv(num_rows, rows),)](
            x.contiguous(),
            weights,
            bias,
            residual,
            result.sums if keep else None,
            norm.weight if norm is not None else None,
            norm.bias if norm is not None else None,
            norm.eps if norm is not None else 0.0,
            result.activated if norm is not None else None,
            num_rows,
            *geometry,
            inputs=x.shape[-1],
            outputs=outputs,
            rows=rows,
            columns=columns,
            inner=inner,
            precision="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            num_warps=8 if columns >= 128 else 4,
            num_stages=3,
            **constants,
        )
    return result
