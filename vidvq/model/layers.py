"""The parts that encoder and decoder are made of. Inside, a video is ``b c g h w``: one latent frame per group.

Nothing looks ahead in time and nothing averages over it: a layer's output at group ``g`` depends on the groups up to
``g`` alone, and on at most ``taps - 1`` of the past ones, which a stream carries along as its state.
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 3


class Past:
    """The past groups that causal layers need, read in one order and collected for the next call.

    Args:
        tensors: one per causal layer, in the order in which they run; None at the start of a stream.
    """

    def __init__(self, tensors: tuple[Tensor, ...] | None = None) -> None:
        self._given: Iterator[Tensor] | None = iter(tensors) if tensors is not None else None
        self.collected: list[Tensor] = []

    def before(self, x: Tensor) -> Tensor:
        """The ``TAPS - 1`` groups before ``x: b c g h w``; at the start of a stream, its first group repeated."""
        if self._given is None:
            past = x[:, :, :1].expand(-1, -1, TAPS - 1, -1, -1)
        else:
            past = next(self._given)
        self.collected.append(torch.cat([past, x], dim=2)[:, :, -(TAPS - 1) :])
        return past


def fold(x: Tensor) -> Tensor:
    """``b c g h w`` -> ``(b g) c h w`` in channels-last memory, which 2D convolutions want."""
    return rearrange(x, "b c g h w -> (b g) c h w").contiguous(memory_format=torch.channels_last)


def unfold(x: Tensor, groups: int) -> Tensor:
    """``(b g) c h w`` -> ``b c g h w``."""
    return rearrange(x, "(b g) c h w -> b c g h w", g=groups)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the channels of each position (Zhang and Sennrich 2019, eq. 4): no mean over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``n c h w`` -> the same."""
        scale = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-6).to(x.dtype)
        return x * scale * self.weight[:, None, None]


class SpatialConv(nn.Conv2d):
    """A 3x3 convolution of each group, ``n c h w``; borders are zero-padded."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1)


class TemporalConv(nn.Module):
    """A convolution over the present group and the ``TAPS - 1`` before it, at each position."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(inputs * TAPS, outputs, 1)

    def forward(self, x: Tensor, groups: int, past: Past) -> Tensor:
        """``(b g) c h w`` -> the same."""
        present = unfold(x, groups)
        line = torch.cat([past.before(present), present], dim=2)
        taps = torch.cat([line[:, :, offset : offset + groups] for offset in range(TAPS)], dim=1)
        return self.mix(fold(taps))


class ResBlock(nn.Module):
    """A (2+1)D residual block: norm, SiLU, 3x3 over space; norm, SiLU, 3 taps over the past (Tran et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_space = RMSNorm(channels)
        self.space = SpatialConv(channels, channels)
        self.norm_time = RMSNorm(channels)
        self.time = TemporalConv(channels, channels)
        # A block starts as the identity, so that depth costs nothing at first.
        nn.init.zeros_(self.time.mix.weight)
        nn.init.zeros_(self.time.mix.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, groups: int, past: Past) -> Tensor:
        """``(b g) c h w`` -> the same."""
        hidden = self.space(F.silu(self.norm_space(x)))
        return x + self.time(F.silu(self.norm_time(hidden)), groups, past)
