"""Parts of a decoder that refine its frames: a look at later groups, and a blending of blocks."""

from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

# Initial gates, before the sigmoid: mostly closed.
_CLOSED = -2.0


class Lookahead(nn.Module):
    """Corrects the latents of a group by those of the groups after it.

    Latents of a static scene become more exact with each group (see :mod:`vidvq.model.quantize.differential`), so later
    groups tell what earlier ones lacked: fixed-lag smoothing (Anderson and Moore 1979, "Optimal Filtering", chapter 7)
    with learned gains. Changes from group to group enter the first features of the decoder; its coarsest features then
    open or close, per position and channel, the way of the changes into the linear path.

    Args:
        groups: number of later groups.
        dim: channels of a latent.
        linear: last channels of a latent, which the linear path decodes.
        channels: channels of the coarsest features.
    """

    def __init__(self, groups: int, dim: int, linear: int, channels: int) -> None:
        super().__init__()
        self.groups, self.linear = groups, linear
        self.features = nn.Linear(groups * dim, channels, bias=False)
        nn.init.zeros_(self.features.weight)
        self.gates = nn.Linear(channels, groups * linear) if linear else None
        if self.gates is not None:
            nn.init.zeros_(self.gates.weight)
            nn.init.constant_(self.gates.bias, _CLOSED)

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Split latents ``b (g + groups) h w d`` into those of ``g`` groups and the changes after each.

        Returns:
            Latents ``b g h w d``, and changes ``b g h w groups d``, the next group first.
        """
        count = latents.shape[1] - self.groups
        changes = latents[:, 1:] - latents[:, :-1]
        later = [changes[:, index : index + count] for index in range(self.groups)]
        return latents[:, :count].contiguous(), torch.stack(later, dim=-2)

    def forward(self, changes: Tensor) -> Tensor:
        """Map changes ``b g h w groups d`` to a summand of the first features, ``b g h w c``."""
        return self.features(changes.flatten(-2))

    def correct(self, latents: Tensor, changes: Tensor, features: Tensor) -> Tensor:
        """Add the changes to the latents of the linear path, as far as the gates are open.

        Args:
            latents: ``b g h w linear``.
            changes: ``b g h w groups d``.
            features: coarsest features ``b g h w c``.
        """
        assert self.gates is not None
        gates = self.gates(features).sigmoid().unflatten(-1, (self.groups, self.linear))
        return latents + (gates * changes[..., -self.linear :]).sum(dim=-2)


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
