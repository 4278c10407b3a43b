"""The parts that encoder and decoder are made of. Inside, a video is ``b t h w c`` in memory of that order.

Channels last is what convolutions, norms over channels and products of matrices all want, on CPUs and GPUs, so that
nothing is ever transposed between them. Nothing averages over time, and nothing looks beyond the group it is in: a
layer's output in group ``g`` depends on the groups up to ``g`` alone, and on at most ``TAPS - 1`` frames of the past
ones, which a stream carries as its state.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 3

Causality = Literal["group", "strict"]


class TemporalCache:
    """The past frames that the causal layers of a network need, for one call of it.

    Args:
        tensors: ``TAPS - 1`` frames ``b 1 h w c`` for each causal layer, in the order in which the layers run; None at
            the start of a stream.

    Attributes:
        updated: the same for the next call, filled in as the layers run.
    """

    def __init__(self, tensors: tuple[Tensor, ...] | None = None) -> None:
        self._given = tensors
        self.updated: list[Tensor] = []

    def prefix(self, x: Tensor) -> list[Tensor]:
        """The next layer's ``TAPS - 1`` frames before ``x: b t h w c``; at the start of a stream, copies of frame 0."""
        if self._given is None:
            past = [x[:, :1]] * (TAPS - 1)
        else:
            at = len(self.updated)
            past = list(self._given[at : at + TAPS - 1])
        length = x.shape[1]
        recent = [x[:, index : index + 1] for index in range(max(length - TAPS + 1, 0), length)]
        self.updated += [*past, *recent][-(TAPS - 1) :]
        return past


class SpatialConv(nn.Conv2d):
    """A 3x3 convolution of each frame, ``b t h w c``; borders are zero-padded."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """``b t h w c`` -> ``b t h' w' c'``."""
        y = super().forward(rearrange(x, "b t h w c -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b t h w c", t=x.shape[1]).contiguous()


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
        self.mix = nn.Linear(inputs * TAPS, outputs)

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """``b t h w c`` -> the same."""
        length = x.shape[1]
        prefix = cache.prefix(x)
        if length > 1:
            line = torch.cat([*prefix, x], dim=1)
            taps = [line[:, offset : offset + length] for offset in range(TAPS)]
        else:
            taps = [*prefix, x]
        if self.ahead:
            grouped = rearrange(x, "b (g f) h w c -> b g f h w c", f=self.frames)
            following = torch.cat([grouped[:, :, 1:], grouped[:, :, -1:]], dim=2).flatten(1, 2)
            taps = [taps[-2], x, following]
        # A product per tap: side by side in one tensor the taps would first have to be copied there.
        first, *others = self.mix.weight.chunk(TAPS, dim=1)
        y = F.linear(taps[0], first, self.mix.bias)
        for tap, weight in zip(taps[1:], others, strict=True):
            # Autocast knows no products in place.
            y.flatten(0, -2).addmm_(tap.flatten(0, -2).to(y.dtype), weight.T.to(y.dtype))
        return y


class Downsample(nn.Module):
    """Half the height and width by a strided 3x3 convolution; ``merge`` frames become one, as further channels."""

    def __init__(self, inputs: int, outputs: int, merge: int) -> None:
        super().__init__()
        self.merge = merge
        self.conv = SpatialConv(inputs * merge, outputs, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``b (t m) h w c`` -> ``b t h/2 w/2 c'``."""
        return self.conv(rearrange(x, "b (t m) h w c -> b t h w (m c)", m=self.merge))


class Upsample(nn.Module):
    """Twice the height and width, ``split`` times the frames: a product per position, shuffled (Shi et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, split: int) -> None:
        super().__init__()
        self.split = split
        self.expand = nn.Linear(inputs, outputs * 4 * split)

    def forward(self, x: Tensor) -> Tensor:
        """``b t h w c`` -> ``b (t m) 2h 2w c'``."""
        return rearrange(self.expand(x), "b t h w (m p q c) -> b (t m) (h p) (w q) c", m=self.split, p=2, q=2)


class ResBlock(nn.Module):
    """A (2+1)D residual block: norm, SiLU, 3x3 over space; norm, SiLU, 3 taps over time (Tran et al. 2018).

    The norms are over the channels of each position (Ba et al. 2016), so that no place or time sees another by them.

    Args:
        channels: in and out.
        frames: in a group.
        causality: of the taps over time.
    """

    def __init__(self, channels: int, frames: int, causality: Causality) -> None:
        super().__init__()
        self.norm_space = nn.LayerNorm(channels)
        self.space = SpatialConv(channels, channels)
        self.norm_time = nn.LayerNorm(channels)
        self.time = TemporalConv(channels, channels, frames, causality)
        # A block starts as the identity, so that depth costs nothing at first.
        nn.init.zeros_(self.time.mix.weight)
        nn.init.zeros_(self.time.mix.bias)

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """``b t h w c`` -> the same."""
        # In place: at these sizes memory costs more time than arithmetic.
        hidden = self.space(F.silu(self.norm_space(x), inplace=True))
        return self.time(F.silu(self.norm_time(hidden), inplace=True), cache).add_(x)
