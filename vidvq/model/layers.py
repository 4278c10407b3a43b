"""Layers of the encoder and the decoder. Activations are ``b t h w c``, contiguous in that order.

Channels-last memory suits convolutions, layer norms and matrix products on CPUs and GPUs alike, so no layer transposes
its input. All layers are causal over groups: the output for group ``g`` depends on groups up to ``g``, and each layer
uses at most ``TAPS - 1`` frames of earlier groups. Those frames are the state of a stream.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 3

Causality = Literal["group", "strict"]


class TemporalCache:
    """Past frames of the causal layers of a network, for one forward pass.

    Args:
        tensors: ``TAPS - 1`` frames ``b 1 h w c`` per causal layer, in execution order; None at the start of a stream.

    Attributes:
        updated: frames to cache for the next forward pass, appended as the layers run.
    """

    def __init__(self, tensors: tuple[Tensor, ...] | None = None) -> None:
        self._given = tensors
        self.updated: list[Tensor] = []

    def prefix(self, x: Tensor) -> list[Tensor]:
        """Return the ``TAPS - 1`` frames before the input of the next layer, and cache the last frames of the input.

        Args:
            x: input of the layer, ``b t h w c``.

        Returns:
            Frames ``b 1 h w c``; copies of frame 0 at the start of a stream.
        """
        if self._given is None:
            past = [x[:, :1]] * (TAPS - 1)
        else:
            start = len(self.updated)
            past = list(self._given[start : start + TAPS - 1])
        length = x.shape[1]
        recent = [x[:, index : index + 1] for index in range(max(length - TAPS + 1, 0), length)]
        self.updated += [*past, *recent][-(TAPS - 1) :]
        return past


class SpatialConv(nn.Conv2d):
    """A 3x3 convolution of each frame with zero padding.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: stride along height and width.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b t h w c`` to ``b t h' w' c'``."""
        y = super().forward(rearrange(x, "b t h w c -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b t h w c", t=x.shape[1]).contiguous()


class TemporalConv(nn.Module):
    """A convolution over ``TAPS`` frames at each spatial position.

    With ``strict`` the taps are the current frame and the frames before it. With ``group`` they are the previous, the
    current and the next frame; the last frame of a group uses itself as the next one (group-causal convolution; Wu et
    al. 2024, "Improved Video VAE for Latent Video Diffusion Model", section 3.3). Groups of one frame are always
    ``strict``.

    Args:
        inputs: input channels.
        outputs: output channels.
        frames: frames per group.
        causality: ``strict`` or ``group``.
    """

    def __init__(self, inputs: int, outputs: int, frames: int, causality: Causality) -> None:
        super().__init__()
        self.frames = frames
        self.looks_ahead = causality == "group" and frames > 1
        self.mix = nn.Linear(inputs * TAPS, outputs)

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """Map ``b t h w c`` to ``b t h w c'``."""
        length = x.shape[1]
        prefix = cache.prefix(x)
        if x.is_cuda and not self.looks_ahead:
            return self.convolve(torch.cat([*prefix, x], dim=1))
        if length > 1:
            extended = torch.cat([*prefix, x], dim=1)
            taps = [extended[:, offset : offset + length] for offset in range(TAPS)]
        else:
            taps = [*prefix, x]
        if self.looks_ahead:
            grouped = rearrange(x, "b (g f) h w c -> b g f h w c", f=self.frames)
            following = torch.cat([grouped[:, :, 1:], grouped[:, :, -1:]], dim=2).flatten(1, 2)
            taps = [taps[-2], x, following]
        # One product per tap: concatenating the taps would copy them.
        first, *others = self.mix.weight.chunk(TAPS, dim=1)
        y = F.linear(taps[0], first, self.mix.bias)
        for tap, weight in zip(taps[1:], others, strict=True):
            # Autocast does not cast the inputs of in-place products.
            y.flatten(0, -2).addmm_(tap.flatten(0, -2).to(y.dtype), weight.T.to(y.dtype))
        return y

    def convolve(self, extended: Tensor) -> Tensor:
        """Map frames and the ``TAPS - 1`` before them, ``b (TAPS - 1 + t) h w c``, to ``b t h w c'``.

        A single 2D convolution: a GPU reads each tap once and sums in fp32, where one product per tap would round each
        partial sum.
        """
        kernel = self.mix.weight.unflatten(1, (TAPS, 1, -1))
        y = F.conv2d(
            rearrange(extended, "b t h w c -> b c t (h w)"), rearrange(kernel, "o t 1 c -> o c t 1"), self.mix.bias
        )
        return rearrange(y, "b c t (h w) -> b t h w c", h=extended.shape[2])


class Downsample(nn.Module):
    """Halves height and width with a strided 3x3 convolution, and merges frames into channels.

    Args:
        inputs: input channels.
        outputs: output channels.
        merge: frames merged into one.
    """

    def __init__(self, inputs: int, outputs: int, merge: int) -> None:
        super().__init__()
        self.merge = merge
        self.conv = SpatialConv(inputs * merge, outputs, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b (t m) h w c`` to ``b t h/2 w/2 c'``."""
        return self.conv(rearrange(x, "b (t m) h w c -> b t h w (m c)", m=self.merge))


class Upsample(nn.Module):
    """Doubles height and width and multiplies the frames, by a pixel shuffle (Shi et al. 2016).

    Args:
        inputs: input channels.
        outputs: output channels.
        split: frames that one frame becomes.
    """

    def __init__(self, inputs: int, outputs: int, split: int) -> None:
        super().__init__()
        self.split = split
        self.expand = nn.Linear(inputs, outputs * 4 * split)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b t h w c`` to ``b (t m) 2h 2w c'``."""
        return rearrange(self.expand(x), "b t h w (m p q c) -> b (t m) (h p) (w q) c", m=self.split, p=2, q=2)


class ResBlock(nn.Module):
    """A (2+1)D residual block: norm, SiLU, spatial convolution; norm, SiLU, temporal convolution (Tran et al. 2018).

    Layer norm over the channels of each position (Ba et al. 2016) leaks no information between positions or frames.

    Args:
        channels: input and output channels.
        frames: frames per group.
        causality: context of the temporal convolution.
    """

    def __init__(self, channels: int, frames: int, causality: Causality) -> None:
        super().__init__()
        self.norm_space = nn.LayerNorm(channels)
        self.space = SpatialConv(channels, channels)
        self.norm_time = nn.LayerNorm(channels)
        self.time = TemporalConv(channels, channels, frames, causality)
        # Zero initialization: each block starts as the identity, so depth does not hinder early training.
        nn.init.zeros_(self.time.mix.weight)
        nn.init.zeros_(self.time.mix.bias)

    def forward(self, x: Tensor, cache: TemporalCache) -> Tensor:
        """Map ``b t h w c`` to the same shape."""
        # In place: memory traffic dominates the time of these layers.
        hidden = self.space(F.silu(self.norm_space(x), inplace=True))
        return self.time(F.silu(self.norm_time(hidden), inplace=True), cache).add_(x)
