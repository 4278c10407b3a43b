"""A PatchGAN discriminator with one logit per space-time patch or per frame patch (Isola et al. 2017).

GPUs have fast kernels for 2D convolutions whose channels are the last axis in memory and multiples of 8. There, the
frames that a kernel covers become channels, and so do the blocks of pixels that it strides over; what is left of the
channels is padded. Elsewhere this would be work. As 3D convolutions they took half of a training step on an H200.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.compilation import compile_graph
from vidvq.model.kernels import HAS_TRITON

_ALIGNMENT = 8
# Zeros around a frame (pixels).
_EDGE = 1
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
        padding = (taps // 2, _EDGE, _EDGE)
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
        self._pass: Callable[[Tensor], Tensor] = self._classify

    def forward(self, video: Tensor) -> Tensor:
        """Map video ``b c t h w`` in [-1, 1] to logits ``b 1 t' h' w'``, positive where a patch looks real."""
        return self._pass(video)

    def compile_training(self, **options: Any) -> None:
        """Compile the training forward pass, without the hooks of a training engine.

        Args:
            **options: arguments of ``torch.compile``.
        """
        self._pass = compile_graph(self._classify, **options)

    def _classify(self, video: Tensor) -> Tensor:
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
        (taps, _, _), (step, stride, _) = self.kernel_size, self.stride
        # Blocks of pixels become channels as well: no stride is left, and fewer channels of pixels are padding.
        weight = rearrange(self.weight, "o c k (h p) (w q) -> o (k p q c) h w", p=stride, q=stride)
        padding, bias = (0 if stride > 1 else _EDGE), self.bias
        assert bias is not None
        frames = rearrange(x, "b c t h w -> b t h w c")
        ahead, outside = taps // 2, _EDGE - padding
        # An odd last row or column is in no block that the kernel covers.
        bottom, right = (outside - size % stride for size in x.shape[3:])
        margins = (0, 0, outside, right, outside, bottom, ahead, ahead)
        frames = F.pad(frames, margins) if any(margins) else frames
        inputs, outputs = (-count % _ALIGNMENT for count in (weight.shape[1], len(weight)))
        image = _windows(frames, taps, step, stride, inputs)
        if inputs:
            # The weight of the first channel of ones is the bias, at a place that is never outside of the frame.
            added = weight.new_zeros(len(weight), inputs, *weight.shape[2:])
            added[:, 0, padding, padding] = bias
            weight, bias = torch.cat([weight, added], dim=1), None
        if outputs:
            weight = F.pad(weight, (*(0,) * 6, 0, outputs))
            bias = None if bias is None else F.pad(bias, (0, outputs))
        y = F.conv2d(image, weight, bias, padding=padding)[:, : self.out_channels]
        return rearrange(y, "(b t) c h w -> b c t h w", b=len(x))


def _windows(frames: Tensor, taps: int, step: int, block: int, ones: int) -> Tensor:
    """Stack what a kernel covers as channels.

    Args:
        frames: ``b t (h block) (w block) c``.
        taps: frames that the kernel covers.
        step: its stride over time (frames).
        block: its stride over height and width (pixels).
        ones: number of further channels, which are 1.

    Returns:
        Windows ``(b t') (taps block block c + ones) h w``, channels last in memory.
    """
    blocks = rearrange(frames, "b t (h p) (w q) c -> b t h p w q c", p=block, q=block)
    if not torch.compiler.is_compiling():
        # The gradient of `unfold` is one kernel.
        windows = rearrange(blocks.unfold(1, taps, step), "b t h p w q c k -> (b t) h w (k p q c)")
        windows = F.pad(windows, (0, ones), value=1) if ones else windows.contiguous()
        return rearrange(windows, "n h w c -> n c h w")
    # Compiled, it would be a sum by atomic operations; slices and their gradient are one kernel each.
    last = frames.shape[1] - taps
    slices = [blocks[:, first : first + last + 1 : step] for first in range(taps)]
    parts = [rearrange(part, "b t h p w q c -> (b t) (p q c) h w") for part in slices]
    added = parts[0].new_ones(1).expand(len(parts[0]), ones, *parts[0].shape[2:])
    return torch.cat([*parts, added], dim=1).contiguous(memory_format=torch.channels_last)


class _NormAndActivation(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        # A compiler generates such kernels itself.
        if HAS_TRITON and has_tensor_cores(x) and not torch.compiler.is_compiling():
            from vidvq.model.kernels.group_norm import GroupNormLeakyRelu

            return GroupNormLeakyRelu.apply(x, self.weight, self.bias, self.num_groups, self.eps, _SLOPE)  # type: ignore[return-value]
        return F.leaky_relu(super().forward(x), _SLOPE)
