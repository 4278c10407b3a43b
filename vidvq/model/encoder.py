"""Video to latents, and latents to video."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.layers import Causality, Downsample, ResBlock, SpatialConv, TemporalCache, Upsample
from vidvq.model.patch import Patch, PatchKind


@dataclass(frozen=True)
class StackConfig:
    """A stack of stages of an encoder or a decoder, from the finest to the coarsest.

    Attributes:
        channels: number of channels of each stage; each stage after the first halves height and width.
        blocks: number of residual blocks of each stage.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    channels: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.blocks) or min(self.channels, default=0) < 1 or min(self.blocks) < 0:
            raise UsageError(f"channels={list(self.channels)} and blocks={list(self.blocks)} must name the same stages")


@dataclass(frozen=True)
class CodecLayout:
    """The layout of the latents that encoder and decoder share.

    Attributes:
        patch: kind of the block transform at the pixels.
        patch_frames, patch_size: frames, and height and width, of a block.
        temporal_factor: frames per group; what the blocks leave of it is halved at the finest changes of size.
        dim: channels of a latent.
        causality: of the convolutions over time.
    """

    patch: PatchKind
    patch_frames: int
    patch_size: int
    temporal_factor: int
    dim: int
    causality: Causality

    def frames(self, stages: int) -> tuple[int, ...]:
        """Frames of a group at each stage, finest first."""
        first = self.temporal_factor // self.patch_frames
        return tuple(max(first >> stage, 1) for stage in range(stages))


class Encoder(nn.Module):
    """``b c (g t) h w`` -> latents ``b d g h/s w/s``, causal over groups."""

    def __init__(self, config: StackConfig, layout: CodecLayout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.patch = Patch(layout.patch, layout.patch_frames, layout.patch_size)
        self.stem = SpatialConv(self.patch.channels, config.channels[0])
        frames = layout.frames(len(config.channels))
        stages: list[nn.Module] = []
        for index, (channels, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
            if index:
                merge = frames[index - 1] // frames[index]
                stages.append(Downsample(config.channels[index - 1], channels, merge))
            stages += [ResBlock(channels, frames[index], layout.causality) for _ in range(blocks)]
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(config.channels[-1])
        self.head = nn.Linear(config.channels[-1], layout.dim)

    @property
    def receptive_radius(self) -> int:
        """Largest distance of a latent from the pixels it depends on, in height or width (latents)."""
        radius = 0
        for index, blocks in reversed(list(enumerate(self.config.blocks))):
            radius += blocks
            # A strided 3x3 convolution: position i of the coarse grid comes from 2i - 1 to 2i + 1.
            radius = 2 * radius + 1 if index else radius + 1
        return -(-radius // (1 << (len(self.config.blocks) - 1)))

    def forward(self, video: Tensor, cache: TemporalCache) -> Tensor:
        """Encode whole groups; ``cache`` carries the frames before them."""
        x = run_stages(self.stages, self.stem(self.patch(video)), cache)
        return rearrange(self.head(F.silu(self.norm(x))), "b t h w d -> b d t h w")


class Decoder(nn.Module):
    """Latents ``b d g h w`` -> ``b c (g t) (h s) (w s)``, causal over groups."""

    def __init__(self, config: StackConfig, layout: CodecLayout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.patch = Patch(layout.patch, layout.patch_frames, layout.patch_size)
        channels, blocks = config.channels[::-1], config.blocks[::-1]
        frames = layout.frames(len(channels))[::-1]
        self.stem = SpatialConv(layout.dim, channels[0])
        stages: list[nn.Module] = [ResBlock(channels[0], frames[0], layout.causality) for _ in range(blocks[0])]
        for (coarse, fine), (few, many), count in zip(pairwise(channels), pairwise(frames), blocks[1:], strict=True):
            stages.append(Upsample(coarse, fine, many // few))
            stages += [ResBlock(fine, many, layout.causality) for _ in range(count)]
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(channels[-1])
        self.head = SpatialConv(channels[-1], self.patch.channels)
        # A decoder starts near grey: at full size its untrained details would be noise, and loud.
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.zero_()  # type: ignore[union-attr]

    @property
    def receptive_radius(self) -> int:
        """Largest distance of a pixel from the latents it depends on, in height or width (latents)."""
        radius = 1
        for index, blocks in enumerate(self.config.blocks):
            # From a grid to the one of half its height and width.
            radius = (-(-radius // 2) if index else radius) + blocks
        return radius + 1

    def forward(self, latents: Tensor, cache: TemporalCache) -> Tensor:
        """Decode whole groups; ``cache`` carries the frames before them."""
        x = self.stem(rearrange(latents, "b d t h w -> b t h w d").contiguous())
        x = run_stages(self.stages, x, cache)
        return self.patch.inverse(self.head(F.silu(self.norm(x))))


def run_stages(stages: Sequence[nn.Module] | nn.ModuleList, x: Tensor, cache: TemporalCache) -> Tensor:
    """Run a stack; residual blocks read the cache, resampling layers do not."""
    for stage in stages:
        x = stage(x, cache) if isinstance(stage, ResBlock) else stage(x)
    return x


def run_batched(
    network: Encoder | Decoder, x: Tensor, past: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one group of every sample or tile at once.

    Args:
        x: the group's frames or latents, the batch first.
        past: what this returned for the group before; None at the start of a stream.

    Returns:
        the network's output, and ``past`` for the next group.
    """
    cache = TemporalCache(past)
    return network(x, cache), tuple(cache.updated)


def run_per_sample(
    network: Encoder | Decoder, x: Tensor, past: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`run_batched` of one sample or tile after another, so that none depends on the size of the batch.

    A kernel for a batch of five rounds otherwise than one for a batch of one: latents differ in their last bits, and
    a latent midway between two codes by its code.
    """
    if len(x) == 1:
        return run_batched(network, x, past)
    outputs, pasts = [], []
    for index, sample in enumerate(x.split(1)):
        own = tuple(tensor[index : index + 1] for tensor in past) if past else None
        output, after = run_batched(network, sample, own)
        outputs.append(output)
        pasts.append(after)
    return torch.cat(outputs), tuple(torch.cat(tensors) for tensors in zip(*pasts, strict=True))
