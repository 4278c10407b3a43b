"""Matrix products over the channels of each position: the patch transform, the head and the linear path."""

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from vidvq.model.kernels.tile import launch, store_tile


@triton.jit(do_not_specialize=["num_rows"])
def _pointwise_kernel(
    x,
    weights,
    bias,
    residual,
    out,
    gain,
    shift,
    eps,
    activated,
    num_rows,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    inner: tl.constexpr,
    precision: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.arange(0, columns)
    sums = tl.zeros((rows, columns), tl.float32)
    for start in range(0, inputs, inner):
        channel = start + tl.arange(0, inner)
        values = tl.load(
            x + row.to(tl.int64)[:, None] * inputs + channel[None, :],
            mask=(row < num_rows)[:, None] & (channel < inputs)[None, :],
            other=0.0,
        )
        factors = tl.load(
            weights + column[None, :] * inputs + channel[:, None],
            mask=(column < outputs)[None, :] & (channel < inputs)[:, None],
            other=0.0,
        )
        sums = tl.dot(values, factors, sums, input_precision=precision)
    store_tile(sums, row, num_rows, bias, residual, out, gain, shift, eps, activated, outputs, columns)


def pointwise(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the channels of each position.

    Args:
        x: ``... i``.
        weights: ``o i``.
        bias: ``o``, or None.

    Returns:
        The products, ``... o``.
    """
    return launch(_pointwise_kernel, x, weights.contiguous(), bias, (*x.shape[:-1], len(weights))).sums
