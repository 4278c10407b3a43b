"""Super-resolution: bicubic enlargement, reduction, and the detail that a decoder adds to the enlargement.

A decoder of twice the height and width starts as the bicubic enlargement of the frames of the plain decoder and learns
the missing detail (a global residual, as in Kim et al. 2016, "Accurate Image Super-Resolution Using Very Deep
Convolutional Networks").
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.model.layers import Causality, ResBlock, SpatialConv, TemporalCache, Upsample
from vidvq.model.patch import Patch
from vidvq.model.pixels import to_frames, to_video

# Taps of the bicubic kernel on either side of a pixel.
_REACH = 2


def shrink(video: Tensor, factor: int) -> Tensor:
    """Reduce height and width by bicubic interpolation with antialiasing.

    Args:
        video: ``b c t h w`` in [-1, 1]. Sides that are not multiples of ``factor`` are extended by their border.
        factor: factor (1 or more).

    Returns:
        Video ``b c t h/factor w/factor`` in [-1, 1], sides rounded up.
    """
    if factor == 1:
        return video
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    height, width = frames.shape[2:]
    frames = F.pad(frames, (0, -width % factor, 0, -height % factor), mode="replicate")
    size = (frames.shape[2] // factor, frames.shape[3] // factor)
    small = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return rearrange(small, "(b t) c h w -> b c t h w", b=len(video))


def shrink_frames(frames: Any, factor: int) -> Any:
    """Reduce a NumPy array of frames ``t h w c`` uint8 as :func:`shrink` does, frame by frame."""
    if factor == 1:
        return frames
    return _each_frame(partial(shrink, factor=factor), frames)


@torch.no_grad()
def enlarge_frames(frames: Any, factor: int) -> Any:
    """Enlarge a NumPy array of frames ``t h w c`` uint8 by bicubic interpolation, frame by frame."""
    return frames if factor == 1 else _each_frame(Bicubic(factor), frames)


def _each_frame(resize: Callable[[Tensor], Tensor], frames: Any) -> Any:
    resized = [torch.from_numpy(to_frames(resize(to_video(frames[at : at + 1])))) for at in range(len(frames))]
    return torch.cat(resized).numpy()


class Bicubic(nn.Module):
    """Enlarges height and width by bicubic interpolation (Keys 1981, a = -0.5); border pixels are repeated.

    Args:
        factor: factor (1 or more).
    """

    kernel: Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        # Position of each new pixel relative to the centre of its old one.
        offsets = (torch.arange(factor, dtype=torch.float64) + 0.5) / factor - 0.5
        weights = _keys(torch.arange(-_REACH, _REACH + 1) - offsets[:, None])
        kernel = torch.einsum("pi,qj->pqij", weights, weights).flatten(0, 1)[:, None]
        self.register_buffer("kernel", kernel.float(), persistent=False)

    def forward(self, video: Tensor) -> Tensor:
        """Map ``b c t h w`` to ``b c t (h f) (w f)``."""
        planes = rearrange(video, "b c t h w -> (b c t) 1 h w")
        # Concatenation, unlike padding, has a deterministic backward pass on GPUs.
        planes = torch.cat([planes[:, :, :1]] * _REACH + [planes] + [planes[:, :, -1:]] * _REACH, dim=2)
        planes = torch.cat([planes[..., :1]] * _REACH + [planes] + [planes[..., -1:]] * _REACH, dim=3)
        large = F.pixel_shuffle(F.conv2d(planes, self.kernel.to(planes.dtype)), self.factor)
        return rearrange(large, "(b c t) 1 h w -> b c t h w", b=video.shape[0], c=video.shape[1])


def _keys(distance: Tensor) -> Tensor:
    x = distance.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


class Enlargement(nn.Module):
    """Enlarges the frames of a decoder: their bicubic enlargement, plus detail from the features of its last stage.

    For each doubling, an upsampling layer and a residual block. The head starts at zero, so that the output starts as
    the bicubic enlargement.

    Args:
        channels: channels of the features.
        frames: frames per group of the features.
        upscale: factor of height and width (a power of two).
        patch: patches of the decoder.
        causality: context of the convolutions over time.
    """

    def __init__(self, channels: int, frames: int, upscale: int, patch: Patch, causality: Causality) -> None:
        super().__init__()
        self.patch, self.bicubic = patch, Bicubic(upscale)
        doublings = upscale.bit_length() - 1
        self.expand = nn.ModuleList(Upsample(channels, channels, 1) for _ in range(doublings))
        self.blocks = nn.ModuleList(ResBlock(channels, frames, causality) for _ in range(doublings))
        self.norm = nn.LayerNorm(channels)
        self.head = SpatialConv(channels, patch.channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    @property
    def receptive_radius(self) -> int:
        """Maximum distance between an output pixel and the features and pixels it depends on (features)."""
        radius = 1
        for _ in self.blocks:
            radius = -(-(radius + 1) // 2)
        # The pixels depend on the features within one patch.
        return max(radius, 1 - (-_REACH // self.patch.space))

    def forward(self, video: Tensor, features: Tensor, cache: TemporalCache) -> Tensor:
        """Enlarge complete groups.

        Args:
            video: frames ``b c (g t) h w`` of the plain decoder.
            features: its last features, ``b t h w c``.
            cache: past frames of each layer; updated in place.
        """
        x = features
        for expand, block in zip(self.expand, self.blocks, strict=True):
            x = block(expand(x), cache)
        return self.bicubic(video) + self.patch.inverse(self.head(F.silu(self.norm(x))))
