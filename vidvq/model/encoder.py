"""Video to latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.model.layers import Past, ResBlock, RMSNorm, SpatialConv, fold, unfold
from vidvq.model.patch import Patch, PatchKind


@dataclass(frozen=True)
class StackConfig:
    """A stack of stages of an encoder or a decoder, from the finest to the coarsest.

    Attributes:
        channels: per stage; each stage after the first halves height and width.
        blocks: residual blocks per stage.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    channels: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.blocks) or min(self.channels, default=0) < 1 or min(self.blocks) < 0:
            raise ValueError(f"channels={list(self.channels)} and blocks={list(self.blocks)} must name the same stages")


class Encoder(nn.Module):
    """``b c (g t) h w`` -> latents ``b d g h/s w/s``, causal over groups.

    Args:
        config: stages.
        patch: kind of the block transform at the input.
        temporal_factor: frames per group.
        patch_size: height and width of a block.
        dim: channels of a latent.
    """

    def __init__(self, config: StackConfig, patch: PatchKind, temporal_factor: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch = Patch(patch, temporal_factor, patch_size)
        self.stem = SpatialConv(self.patch.channels, config.channels[0])
        stages: list[nn.Module] = []
        for index, (channels, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
            if index:
                stages.append(SpatialConv(config.channels[index - 1], channels, stride=2))
            stages += [ResBlock(channels) for _ in range(blocks)]
        self.stages = nn.ModuleList(stages)
        self.norm = RMSNorm(config.channels[-1])
        self.head = nn.Conv2d(config.channels[-1], dim, 1)

    def forward(self, video: Tensor, past: Past) -> Tensor:
        """Encode whole groups; ``past`` carries what came before them."""
        patches = self.patch(video)
        groups = patches.shape[2]
        x = self.stem(fold(patches))
        x = run_stages(self.stages, x, groups, past)
        return unfold(self.head(F.silu(self.norm(x))), groups)


class Upsample(nn.Module):
    """Twice the height and width by a 1x1 convolution and a pixel shuffle (Shi et al. 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, outputs * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``n c h w`` -> ``n c' 2h 2w``."""
        return F.pixel_shuffle(self.expand(x), 2)


class Decoder(nn.Module):
    """Latents ``b d g h w`` -> ``b c (g t) (h s) (w s)``, causal over groups. Arguments as for :class:`Encoder`."""

    def __init__(self, config: StackConfig, patch: PatchKind, temporal_factor: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch = Patch(patch, temporal_factor, patch_size)
        channels, blocks = config.channels[::-1], config.blocks[::-1]
        self.stem = SpatialConv(dim, channels[0])
        stages: list[nn.Module] = [ResBlock(channels[0]) for _ in range(blocks[0])]
        for (coarse, fine), count in zip(pairwise(channels), blocks[1:], strict=True):
            stages.append(Upsample(coarse, fine))
            stages += [ResBlock(fine) for _ in range(count)]
        self.stages = nn.ModuleList(stages)
        self.norm = RMSNorm(channels[-1])
        self.head = SpatialConv(channels[-1], self.patch.channels)

    def forward(self, latents: Tensor, past: Past) -> Tensor:
        """Decode whole groups; ``past`` carries what came before them."""
        groups = latents.shape[2]
        x = run_stages(self.stages, self.stem(fold(latents)), groups, past)
        return self.patch.inverse(unfold(self.head(F.silu(self.norm(x))), groups))


def run_stages(stages: Sequence[nn.Module] | nn.ModuleList, x: Tensor, groups: int, past: Past) -> Tensor:
    """Run a stack; blocks see the past, changes of size do not."""
    for stage in stages:
        x = stage(x, groups, past) if isinstance(stage, ResBlock) else stage(x)
    return x
