"""The causal convolution over time, with its residual."""

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor, nn

from vidvq.model.kernels.tile import Result, launch, store_tile
from vidvq.model.layers import TAPS, TemporalCache, TemporalConv


@triton.jit(do_not_specialize=["num_rows", "length", "area"])
def _temporal_kernel(
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
    past,
    length,
    area,
    frames: tl.constexpr,
    ahead: tl.constexpr,
    taps: tl.constexpr,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    inner: tl.constexpr,
    precision: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.arange(0, columns)
    position = row % area
    sample = (row // (length * area)).to(tl.int64)
    frame = row // area % length
    # The last frame of a group is its own next frame.
    last = frame // frames * frames + frames - 1
    blocks: tl.constexpr = (inputs + inner - 1) // inner
    sums = tl.zeros((rows, columns), tl.float32)
    for step in range(taps * blocks):
        tap = step // blocks
        channel = step % blocks * inner + tl.arange(0, inner)
        at = tl.minimum(frame + tap + (ahead - taps + 1), last)
        known = (row < num_rows)[:, None] & (channel < inputs)[None, :]
        before = (at < 0)[:, None]
        current = ((sample * length + at) * area + position) * inputs
        earlier = ((sample * (taps - 1) + at + (taps - 1)) * area + position) * inputs
        # One load from either tensor: each of two would take shared memory of its own.
        source = tl.where(before, past + earlier[:, None], x + current[:, None])
        values = tl.load(source + channel[None, :], mask=known, other=0.0)
        factors = tl.load(
            weights + (column[None, :] * taps + tap) * inputs + channel[:, None],
            mask=(column < outputs)[None, :] & (channel < inputs)[:, None],
            other=0.0,
        )
        sums = tl.dot(values, factors, sums, input_precision=precision)
    store_tile(sums, row, num_rows, bias, residual, out, gain, shift, eps, activated, outputs, columns)


def temporal(
    x: Tensor,
    conv: TemporalConv,
    cache: TemporalCache,
    residual: Tensor,
    norm: nn.LayerNorm | None = None,
    keep: bool = True,
) -> Result:
    """Apply a convolution over time, add the residual, and apply the norm and the SiLU that follow.

    Args:
        x: ``b t h w c``.
        conv: the convolution.
        cache: past frames; updated in place.
        residual: ``b t h w c'``.
        norm: the layer norm; None computes no activation.
        keep: return the output itself.

    Returns:
        The output ``b t h w c'`` and its activation.
    """
    _, length, height, width, _ = x.shape
    return launch(
        _temporal_kernel,
        x,
        conv.mix.weight,
        conv.mix.bias,
        tuple(residual.shape),
        (torch.cat(cache.prefix(x), dim=1), length, height * width),
        residual=residual,
        norm=norm,
        keep=keep,
        frames=conv.frames,
        ahead=int(conv.looks_ahead),
        taps=TAPS,
    )
