"""A PatchGAN discriminator with one logit per space-time patch or per frame patch (Isola et al. 2017).

GPUs have fast kernels for 2D convolutions whose channels are the last axis in memory and multiples of 8. There, the
frames that a kernel covers become channels, and the channels of pixels and logits are padded; elsewhere this would be
work. As 3D convolutions they took half of a training step on an H200.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError

_HAS_TRITON = find_spec("triton") is not None
_ALIGNMENT = 8
_SLOPE = 0.2


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
        first = _Conv(3, width, (taps, 4, 4), stride=(1, 2, 2), padding=padding)
        layers: list[nn.Module] = [first, nn.LeakyReLU(_SLOPE)]
        for _ in range(config.layers):
            layers += [
                _Conv(width, width * 2, (taps, 4, 4), stride=2, padding=padding),
                _NormAndActivation(8 if width % 4 == 0 else 1, width * 2),
                # Checkpoints count the activation as a layer.
                nn.Identity(),
            ]
            width *= 2
        layers.append(_Conv(width, 1, (taps, 3, 3), padding=padding))
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        """Map video ``b c t h w`` in [-1, 1] to logits ``b 1 t' h' w'``, positive where a patch looks real."""
        if has_tensor_cores(video) and torch.is_autocast_enabled(video.device.type):
            # Not after padding, which would copy fp32.
            video = video.to(torch.get_autocast_dtype(video.device.type))
        if not self.by_frame:
            return self.layers(video)
        # A batch of images: group norm must not mix statistics of different frames.
        logits = self.layers(rearrange(video, "b c t h w -> (b t) c 1 h w"))
        return rearrange(logits, "(b t) c 1 h w -> b c t h w", t=video.shape[2])


def has_tensor_cores(x: Tensor) -> bool:
    """Tell whether layers of ``x`` should be channels last, with multiples of 8 channels."""
    return x.is_cuda


class _Conv(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if not has_tensor_cores(x):
            return super().forward(x)
        taps, frames = self.kernel_size[0], rearrange(x, "b c t h w -> b t h w c")
        if taps > 1:
            # One zero frame on either side, as `self.padding` says.
            windows = F.pad(frames, (0, 0, 0, 0, 0, 0, 1, 1)).unfold(1, taps, self.stride[0])
            frames = rearrange(windows, "b t h w c k -> b t h w (k c)")
        weight, bias = rearrange(self.weight, "o c k h w -> o (k c) h w"), self.bias
        assert bias is not None
        if inputs := -weight.shape[1] % _ALIGNMENT:
            # A further channel of ones, whose weight is the bias, at the place that is never outside of the frame.
            frames = F.pad(frames, (0, inputs), value=1)
            added = weight.new_zeros(len(weight), inputs, *weight.shape[2:])
            added[:, 0, 1, 1] = bias
            weight, bias = torch.cat([weight, added], dim=1), None
        if outputs := -self.out_channels % _ALIGNMENT:
            weight = F.pad(weight, (*(0,) * 6, 0, outputs))
            bias = None if bias is None else F.pad(bias, (0, outputs))
        image = rearrange(frames, "b t h w c -> (b t) c h w").contiguous(memory_format=torch.channels_last)
        y = F.conv2d(image, weight, bias, self.stride[1:], self.padding[1:])[:, : self.out_channels]
        return rearrange(y, "(b t) c h w -> b c t h w", b=len(x))


class _NormAndActivation(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        # A compiler generates such kernels itself.
        if _HAS_TRITON and has_tensor_cores(x) and not torch.compiler.is_compiling():
            from vidvq.model.kernels.group_norm import GroupNormLeakyRelu

            return GroupNormLeakyRelu.apply(x, self.weight, self.bias, self.num_groups, self.eps, _SLOPE)  # type: ignore[return-value]
        return F.leaky_relu(super().forward(x), _SLOPE)
