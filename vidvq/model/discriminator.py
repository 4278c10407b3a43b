"""A PatchGAN discriminator with one logit per space-time patch or per frame patch (Isola et al. 2017)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from einops import rearrange
from torch import Tensor, nn

from vidvq.errors import UsageError


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Architecture of the discriminator.

    Attributes:
        sees: input of a logit: ``motion`` classifies space-time patches with 3D convolutions, ``frames`` classifies
            patches of single frames.
        channels: channels of the first layer (1 or more); each further layer doubles them.
        layers: strided layers after the first (0 or more). Each halves height and width, and with ``sees=motion`` also
            time.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    sees: Literal["motion", "frames"] = "motion"
    channels: int = 32
    layers: int = 2

    def __post_init__(self) -> None:
        if self.channels < 1 or self.layers < 0:
            raise UsageError(f"channels={self.channels} must be at least 1, layers={self.layers} at least 0")


class Discriminator(nn.Module):
    """Classifies patches of video ``b c t h w`` as real or reconstructed.

    Args:
        config: architecture of the network.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.by_frame = config.sees == "frames"
        width, taps = config.channels, 1 if self.by_frame else 3
        padding = (taps // 2, 1, 1)
        first = nn.Conv3d(3, width, (taps, 4, 4), stride=(1, 2, 2), padding=padding)
        layers: list[nn.Module] = [first, nn.LeakyReLU(0.2)]
        for _ in range(config.layers):
            layers += [
                nn.Conv3d(width, width * 2, (taps, 4, 4), stride=2, padding=padding),
                nn.GroupNorm(8 if width % 4 == 0 else 1, width * 2),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        layers.append(nn.Conv3d(width, 1, (taps, 3, 3), padding=padding))
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        """Map video ``b c t h w`` in [-1, 1] to logits ``b 1 t' h' w'``, positive where a patch looks real."""
        if not self.by_frame:
            return self.layers(video)
        # A batch of images: group norm must not mix statistics of different frames.
        logits = self.layers(rearrange(video, "b c t h w -> (b t) c 1 h w"))
        return rearrange(logits, "(b t) c 1 h w -> b c t h w", t=video.shape[2])
