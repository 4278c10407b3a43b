"""Encoder (video to latents) and decoder (latents to video) networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.blocks import Blocks
from vidvq.model.enlarge import Enlargement
from vidvq.model.layers import Causality, Downsample, ResBlock, SpatialConv, TemporalCache, Upsample
from vidvq.model.patch import Patch, PatchKind
from vidvq.model.refine import Blend, Lookahead


@dataclass(frozen=True)
class StackConfig:
    """Stages of an encoder or a decoder, from the finest resolution to the coarsest.

    Attributes:
        channels: channels of each stage; each stage after the first halves height and width.
        blocks: residual blocks of each stage (0 or more); one entry per entry of ``channels``.
    """

    channels: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.blocks) or min(self.channels, default=0) < 1 or min(self.blocks) < 0:
            raise UsageError(
                f"channels={list(self.channels)} (1 or more each) and blocks={list(self.blocks)} (0 or more each) must "
                "have one entry per stage"
            )


@dataclass(frozen=True)
class DecoderConfig(StackConfig):
    """Stages of a decoder.

    Attributes:
        channels: channels of each stage; each stage after the first halves height and width.
        blocks: residual blocks of each stage (0 or more); one entry per entry of ``channels``.
        upscale: height and width of the decoded frames relative to the encoded ones: 1, 2 or 4. Above 1 the decoder
            is trained for super-resolution.
        lookahead: later latent frames that a decoded group may depend on (0 or more). They show what a static scene
            looks like more exactly. Streams are decoded with a delay of as many groups; tokens do not change.
        denoise: 3x3 convolutions over the latents that remove quantization noise; needs ``lookahead`` (0: none).
        overlap: whether a linear map of the latents around a block corrects its pixels, so that neighbouring blocks
            overlap (lapped transform; Malvar and Staelin 1989, "The LOT: transform coding without blocking effects").
        blend: channels of a last stage at full resolution, which blends the blocks of pixels (0: none).
    """

    blocks: tuple[int, ...] = (2, 3)
    upscale: int = 1
    lookahead: int = 0
    denoise: int = 0
    overlap: bool = False
    blend: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lookahead", "denoise", "blend"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be 0 or more")
        if self.denoise and not self.lookahead:
            raise UsageError(f"denoise={self.denoise} needs lookahead=1 or more")
        if self.upscale not in (1, 2, 4):
            raise UsageError(f"upscale={self.upscale} must be 1, 2 or 4")


@dataclass(frozen=True)
class CodecLayout:
    """Layout of patches and latents, shared by the encoder and the decoder.

    Attributes:
        patch: transform between pixels and channels.
        patch_frames: frames of a patch.
        patch_size: height and width of a patch (pixels).
        temporal_factor: frames per group; the finest resampling layers halve what the patch leaves of it.
        dim: channels of a latent.
        causality: context of the convolutions over time.
        linear: number of last channels of a latent that have a linear path from and to the pixels of their block.
    """

    patch: PatchKind
    patch_frames: int
    patch_size: int
    temporal_factor: int
    dim: int
    causality: Causality
    linear: int = 0

    def frames(self, stages: int) -> tuple[int, ...]:
        """Return the frames of a group at each stage, finest first."""
        first = self.temporal_factor // self.patch_frames
        return tuple(max(first >> stage, 1) for stage in range(stages))

    def blocks(self, stages: int) -> Blocks:
        """Return the blocks of pixels of the latents of a network with ``stages`` stages."""
        return Blocks(self.temporal_factor, self.patch_size << (stages - 1))


class Encoder(nn.Module):
    """Maps video ``b c (g t) h w`` to latents ``b d g h/s w/s``, causally over groups.

    Args:
        config: stages of the network.
        layout: layout of patches and latents.
    """

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
        self.blocks = self.linear = None
        if layout.linear:
            self.blocks = layout.blocks(len(config.channels))
            self.linear = nn.Linear(self.blocks.size, layout.linear, bias=False)
            with torch.no_grad():
                self.linear.weight.copy_(self.blocks.lowest_frequencies(layout.linear))

    @property
    def receptive_radius(self) -> int:
        """Maximum distance between a latent and the pixels it depends on, along height or width (latents)."""
        radius = 0
        for index, blocks in reversed(list(enumerate(self.config.blocks))):
            radius += blocks
            # A strided 3x3 convolution: position i of the coarse grid comes from 2i - 1 to 2i + 1.
            radius = 2 * radius + 1 if index else radius + 1
        return -(-radius // (1 << (len(self.config.blocks) - 1)))

    def forward(self, video: Tensor, cache: TemporalCache) -> Tensor:
        """Encode complete groups.

        Args:
            video: ``b c (g t) h w`` in [-1, 1].
            cache: past frames of each layer; updated in place.
        """
        x = run_stages(self.stages, self.stem(self.patch(video)), cache)
        latents = self.head(F.silu(self.norm(x)))
        if self.blocks is not None and self.linear is not None:
            mapped = self.linear(self.blocks(video))
            latents = latents + F.pad(mapped, (latents.shape[-1] - mapped.shape[-1], 0))
        return rearrange(latents, "b t h w d -> b d t h w")


class Decoder(nn.Module):
    """Maps latents ``b d g h w`` to video ``b c (g t) (h s) (w s)``, causally over groups.

    With ``upscale`` the height and width of the video are as many times larger.

    Args:
        config: stages of the network.
        layout: layout of patches and latents.
    """

    def __init__(self, config: DecoderConfig, layout: CodecLayout) -> None:
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
        # Initial outputs are near grey: at full scale an untrained decoder would add strong noise.
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.zero_()  # type: ignore[union-attr]
        self.blocks = layout.blocks(len(channels))
        self.linear = self.overlap = None
        if layout.linear:
            self.linear = nn.Linear(layout.linear, self.blocks.size, bias=False)
            with torch.no_grad():
                self.linear.weight.copy_(self.blocks.lowest_frequencies(layout.linear).T)
        if config.overlap:
            self.overlap = SpatialConv(layout.dim, self.blocks.size)
            nn.init.zeros_(self.overlap.weight)
            nn.init.zeros_(self.overlap.bias)  # type: ignore[arg-type]
        self.lookahead = self.blend = self.enlargement = None
        if config.lookahead:
            self.lookahead = Lookahead(config.lookahead, layout.dim, config.denoise)
        if config.blend:
            self.blend = Blend(layout.temporal_factor, config.blend)
        if config.upscale > 1:
            self.enlargement = Enlargement(channels[-1], frames[-1], config.upscale, self.patch, layout.causality)

    @property
    def receptive_radius(self) -> int:
        """Maximum distance between a pixel and the latents it depends on, along height or width (latents)."""
        radius = 1 if self.enlargement is None else self.enlargement.receptive_radius
        if self.blend is not None:
            radius += -(-self.blend.REACH // self.patch.space)
        for index, blocks in enumerate(self.config.blocks):
            # Distances halve at each step to a coarser grid.
            radius = (-(-radius // 2) if index else radius) + blocks
        return radius + 1 + (0 if self.lookahead is None else self.lookahead.receptive_radius)

    def extend(self, latents: Tensor) -> Tensor:
        """Append copies of the last latents of complete streams ``b d g h w``, in place of later groups."""
        return torch.cat([latents, *[latents[:, :, -1:]] * self.config.lookahead], dim=2)

    def forward(self, latents: Tensor, cache: TemporalCache) -> Tensor:
        """Decode complete groups.

        Args:
            latents: ``b d g h w``, followed by the latents of ``lookahead`` groups.
            cache: past frames of each layer; updated in place.

        Returns:
            Video of the ``g`` groups.
        """
        z = rearrange(latents, "b d t h w -> b t h w d").contiguous()
        if self.lookahead is not None:
            z = self.lookahead(z)
        x = run_stages(self.stages, self.stem(z), cache)
        video = self.patch.inverse(self.head(F.silu(self.norm(x))))
        if self.linear is not None:
            video = video + self.blocks.inverse(self.linear(z[..., -self.linear.in_features :]))
        if self.overlap is not None:
            video = video + self.blocks.inverse(self.overlap(z))
        if self.blend is not None:
            video = self.blend(video)
        return video if self.enlargement is None else self.enlargement(video, x, cache)


def run_stages(stages: Sequence[nn.Module] | nn.ModuleList, x: Tensor, cache: TemporalCache) -> Tensor:
    """Apply the stages in order; only residual blocks use the cache."""
    for stage in stages:
        x = stage(x, cache) if isinstance(stage, ResBlock) else stage(x)
    return x
