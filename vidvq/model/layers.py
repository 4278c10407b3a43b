"""The parts that encoder and decoder are made of. Inside, a video is ``b c t h w`` with ``t`` a multiple of the groups.

Nothing averages over time, and nothing looks beyond the group it is in: a layer's output in group ``g`` depends on the
groups up to ``g`` alone, and on at most ``TAPS - 1`` frames of the past ones, which a stream carries as its state.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 3

Causality = Literal["group", "strict"]


class Past:
    """The past frames that causal layers need, read in one order and collected for the next call.

    Args:
        tensors: one per causal layer, in the order in which they run; None at the start of a stream.
    """

    def __init__(self, tensors: tuple[Tensor, ...] | None = None) -> None:
        self._given = tensors
        self.collected: list[Tensor] = []

    def before(self, x: Tensor) -> Tensor:
        """The ``TAPS - 1`` frames before ``x: b c t h w``; at the start of a stream, its first frame repeated."""
        if self._given is None:
            past = x[:, :, :1].expand(-1, -1, TAPS - 1, -1, -1)
        else:
            past = self._given[len(self.collected)]
        self.collected.append(torch.cat([past, x], dim=2)[:, :, -(TAPS - 1) :])
        return past


def fold(x: Tensor) -> Tensor:
    """``b c t h w`` -> ``(b t) c h w`` in channels-last memory, which 2D convolutions want."""
    return rearrange(x, "b c t h w -> (b t) c h w").contiguous(memory_format=torch.channels_last)


def unfold(x: Tensor, frames: int) -> Tensor:
    """``(b t) c h w`` -> ``b c t h w``."""
    return rearrange(x, "(b t) c h w -> b c t h w", t=frames)


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
    """A 3x3 convolution of each frame, ``n c h w``; borders are zero-padded."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1)


class TemporalConv(nn.Module):
    """A convolution over ``TAPS`` frames at each position.

    ``strict``: the present frame and those before it. ``group``: the one before, the present, and the next one, but
    never one of the next group, in whose place the group's last frame stands (group-causal convolution; Wu et al.
    2024, "Improved Video VAE for Latent Video Diffusion Model", section 3.3). Where a group is one frame, both are
    ``strict``.

    Args:
        inputs, outputs: channels.
        frames: in a group.
    """

    def __init__(self, inputs: int, outputs: int, frames: int, causality: Causality) -> None:
        super().__init__()
        self.frames = frames
        self.ahead = causality == "group" and frames > 1
        self.mix = nn.Conv2d(inputs * TAPS, outputs, 1)

    def forward(self, x: Tensor, groups: int, past: Past) -> Tensor:
        """``(b t) c h w`` -> the same."""
        length = groups * self.frames
        present = unfold(x, length)
        line = torch.cat([past.before(present), present], dim=2)
        if self.ahead:
            grouped = rearrange(present, "b c (g f) h w -> b c g f h w", f=self.frames)
            following = torch.cat([grouped[:, :, :, 1:], grouped[:, :, :, -1:]], dim=3)
            parts = [line[:, :, 1:-1], present, following.flatten(2, 3)]
        else:
            parts = [line[:, :, offset : offset + length] for offset in range(TAPS)]
        return self.mix(fold(torch.cat(parts, dim=1)))


class Downsample(nn.Module):
    """Half the height and width by a strided 3x3 convolution; ``merge`` frames become one, as further channels."""

    def __init__(self, inputs: int, outputs: int, merge: int) -> None:
        super().__init__()
        self.merge = merge
        self.conv = SpatialConv(inputs * merge, outputs, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(n m) c h w`` -> ``n c' h/2 w/2``."""
        return self.conv(rearrange(x, "(n m) c h w -> n (m c) h w", m=self.merge))


class Upsample(nn.Module):
    """Twice the height and width, ``split`` times the frames, by a 1x1 convolution and shuffling (Shi et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, split: int) -> None:
        super().__init__()
        self.split = split
        self.expand = nn.Conv2d(inputs, outputs * 4 * split, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``n c h w`` -> ``(n m) c' 2h 2w``."""
        return F.pixel_shuffle(rearrange(self.expand(x), "n (m c) h w -> (n m) c h w", m=self.split), 2)


class ResBlock(nn.Module):
    """A (2+1)D residual block: norm, SiLU, 3x3 over space; norm, SiLU, 3 taps over time (Tran et al. 2018).

    Args:
        channels: in and out.
        frames: in a group.
        causality: of the taps over time.
    """

    def __init__(self, channels: int, frames: int, causality: Causality) -> None:
        super().__init__()
        self.norm_space = RMSNorm(channels)
        self.space = SpatialConv(channels, channels)
        self.norm_time = RMSNorm(channels)
        self.time = TemporalConv(channels, channels, frames, causality)
        # A block starts as the identity, so that depth costs nothing at first.
        nn.init.zeros_(self.time.mix.weight)
        nn.init.zeros_(self.time.mix.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, groups: int, past: Past) -> Tensor:
        """``(b t) c h w`` -> the same."""
        hidden = self.space(F.silu(self.norm_space(x)))
        return x + self.time(F.silu(self.norm_time(hidden)), groups, past)
