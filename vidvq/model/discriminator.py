"""A small PatchGAN: a verdict for each patch of space and time, or of a frame (Isola et al. 2017)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from einops import rearrange
from torch import Tensor, nn

from vidvq.errors import UsageError


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of the discriminator.

    Attributes:
        sees: ``motion`` judges patches of space and time, with 3D convolutions; ``frames`` judges each frame by itself.
        channels: number of channels of the first layer; each further layer has twice as many.
        layers: number of strided layers after the first; each halves height and width, and time with ``sees=motion``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    sees: Literal["motion", "frames"] = "motion"
    channels: int = 32
    layers: int = 2

    def __post_init__(self) -> None:
        if self.channels < 1 or self.layers < 0:
            raise UsageError(f"channels={self.channels} must be at least 1, layers={self.layers} at least 0")


class Discriminator(nn.Module):
    """Video ``b c t h w`` to logits ``b 1 t' h' w'``: above 0 where a patch looks real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.by_frame = config.sees == "frames"
        width, taps = config.channels, 1 if self.by_frame else 3
        around = (taps // 2, 1, 1)
        first = nn.Conv3d(3, width, (taps, 4, 4), stride=(1, 2, 2), padding=around)
        layers: list[nn.Module] = [first, nn.LeakyReLU(0.2)]
        for _ in range(config.layers):
            layers += [
                nn.Conv3d(width, width * 2, (taps, 4, 4), stride=2, padding=around),
                nn.GroupNorm(8 if width % 4 == 0 else 1, width * 2),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        layers.append(nn.Conv3d(width, 1, (taps, 3, 3), padding=around))
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        """Judge a video in [-1, 1]."""
        if not self.by_frame:
            return self.layers(video)
        # As a batch of images: norms must not see other frames either.
        logits = self.layers(rearrange(video, "b c t h w -> (b t) c 1 h w"))
        return rearrange(logits, "(b t) c 1 h w -> b c t h w", t=video.shape[2])
