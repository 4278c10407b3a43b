"""The 3x3 convolution of each frame as an implicit matrix product, without copies of windows."""

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor, nn

from vidvq.model.kernels.tile import Result, launch, store_tile
from vidvq.model.layers import SpatialConv


@triton.jit(do_not_specialize=["num_rows", "height", "width", "out_height", "out_width"])
def _spatial_kernel(
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
    height,
    width,
    out_height,
    out_width,
    stride: tl.constexpr,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    inner: tl.constexpr,
    precision: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.arange(0, columns)
    frame = row // (out_height * out_width)
    top = row // out_width % out_height * stride - 1
    left = row % out_width * stride - 1
    blocks: tl.constexpr = (inputs + inner - 1) // inner
    sums = tl.zeros((rows, columns), tl.float32)
    # One loop over taps and channels, because only innermost loops are pipelined.
    for step in range(9 * blocks):
        tap = step // blocks
        channel = step % blocks * inner + tl.arange(0, inner)
        i, j = top + tap // 3, left + tap % 3
        inside = (row < num_rows) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        source = ((frame.to(tl.int64) * height + i) * width + j) * inputs
        pixels = tl.load(
            x + source[:, None] + channel[None, :], mask=inside[:, None] & (channel < inputs)[None, :], other=0.0
        )
        factors = tl.load(
            weights + (column[None, :] * 9 + tap) * inputs + channel[:, None],
            mask=(column < outputs)[None, :] & (channel < inputs)[:, None],
            other=0.0,
        )
        sums = tl.dot(pixels, factors, sums, input_precision=precision)
    store_tile(sums, row, num_rows, bias, residual, out, gain, shift, eps, activated, outputs, columns)


def spatial(x: Tensor, conv: SpatialConv, norm: nn.LayerNorm | None = None, keep: bool = True) -> Result:
    """Apply a 3x3 convolution, and the norm and the SiLU that follow it.

    Args:
        x: ``b t h w c``.
        conv: the convolution, of any stride.
        norm: the layer norm; None computes no activation.
        keep: return the output itself.

    Returns:
        The output ``b t h' w' c'`` and its activation.
    """
    b, t, height, width, _ = x.shape
    stride = conv.stride[0]
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    return launch(
        _spatial_kernel,
        x,
        conv.weight.permute(0, 2, 3, 1).contiguous(),
        conv.bias,
        (b, t, out_height, out_width, conv.out_channels),
        (height, width, out_height, out_width),
        norm=norm,
        keep=keep,
        stride=stride,
    )
