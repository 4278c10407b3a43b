"""A small 3D PatchGAN: a verdict for each patch of space and time (Isola et al. 2017, made spatiotemporal)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of the discriminator.

    Attributes:
        channels: of the first layer; each further layer has twice as many.
        layers: strided layers after the first, each halving time, height and width.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    channels: int = 32
    layers: int = 2

    def __post_init__(self) -> None:
        if self.channels < 1 or self.layers < 0:
            raise ValueError(f"channels={self.channels} must be at least 1, layers={self.layers} at least 0")


class Discriminator(nn.Module):
    """Video ``b c t h w`` to logits ``b 1 t' h' w'``: above 0 where a patch looks real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [nn.Conv3d(3, width, (3, 4, 4), stride=(1, 2, 2), padding=1), nn.LeakyReLU(0.2)]
        for _ in range(config.layers):
            layers += [
                nn.Conv3d(width, width * 2, (3, 4, 4), stride=2, padding=1),
                nn.GroupNorm(8 if width % 4 == 0 else 1, width * 2),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        layers.append(nn.Conv3d(width, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        """Judge a video in [-1, 1]."""
        return self.layers(video)
