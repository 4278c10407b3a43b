"""Optional parts of a decoder: lookahead, which refines latents by later groups, and blending of blocks of pixels."""

from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.model.layers import SpatialConv

# Hidden channels of the gates, and their initial logits: mostly closed.
_CHANNELS, _CLOSED = 48, -3.0
# Lower limit of the mean square of a change, before its logarithm.
_SMALLEST = 1e-6


class Lookahead(nn.Module):
    """Refines the latents of a group by those of the groups after it.

    Latents of a static scene become more exact with each group (see :mod:`vidvq.model.quantize.differential`), so later
    groups correct earlier ones: fixed-lag smoothing (Anderson and Moore 1979, "Optimal Filtering", chapter 7) with
    learned gains. Each change from a group to the next is added, scaled by a gate per position and channel. Where the
    scene moves, no later group is more exact. With ``depth`` a residual network of the latents of neighbouring
    positions removes quantization noise there as well.

    Args:
        groups: number of later groups (1 or more).
        dim: channels of a latent.
        depth: 3x3 convolutions of the residual network (0: none).
    """

    def __init__(self, groups: int, dim: int, depth: int = 0) -> None:
        super().__init__()
        self.groups = groups
        self.context = SpatialConv((1 + groups) * dim + groups, _CHANNELS)
        self.layers = nn.ModuleList(SpatialConv(_CHANNELS, _CHANNELS) for _ in range(depth))
        self.gates = nn.Linear(_CHANNELS, groups * dim)
        nn.init.zeros_(self.gates.weight)
        nn.init.constant_(self.gates.bias, _CLOSED)
        self.residual = None
        if depth:
            self.residual = nn.Linear(_CHANNELS, dim)
            nn.init.zeros_(self.residual.weight)
            nn.init.zeros_(self.residual.bias)

    @property
    def receptive_radius(self) -> int:
        """Maximum distance between a latent and those that it depends on, along height or width (latents)."""
        return 1 + len(self.layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents ``b (g + groups) h w d`` to those of ``g`` groups, ``b g h w d``."""
        count = latents.shape[1] - self.groups
        steps = latents[:, 1:] - latents[:, :-1]
        changes = torch.stack([steps[:, index : index + count] for index in range(self.groups)], dim=-2)
        # Small changes refine a static scene, large ones replace it.
        sizes = changes.square().mean(dim=-1).clamp(min=_SMALLEST).log()
        known = torch.cat([latents[:, :count], changes.flatten(-2), sizes], dim=-1)
        x = F.silu(self.context(known))
        for layer in self.layers:
            x = x + F.silu(layer(x))
        refined = latents[:, :count] + (self.gates(x).sigmoid().view(changes.shape) * changes).sum(dim=-2)
        return refined if self.residual is None else refined + self.residual(x)


class Blend(nn.Module):
    """Blends blocks of pixels at full resolution: a residual of three 3x3 convolutions over the frames of a group.

    Args:
        frames: frames per group.
        channels: channels between the convolutions.
    """

    # Pixels that a pixel depends on, in each direction.
    REACH = 3

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        self.frames = frames
        sizes = (3 * frames, channels, channels, 3 * frames)
        self.layers = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairwise(sizes))
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, video: Tensor) -> Tensor:
        """Map ``b c (g t) h w`` to the same shape."""
        x = rearrange(video, "b c (g t) h w -> (b g) (t c) h w", t=self.frames)
        x = x.contiguous(memory_format=torch.channels_last)
        first, middle, last = self.layers
        x = last(F.silu(middle(F.silu(first(x), inplace=True)), inplace=True))
        return video + rearrange(x, "(b g) (t c) h w -> b c (g t) h w", b=len(video), t=self.frames)
