"""A PatchGAN discriminator with one logit per space-time patch or per frame patch (Isola et al. 2017).

GPUs have fast kernels for 2D convolutions, channels last, with multiples of 8 channels. There, 3D convolutions, which
took half of a training step on an H200, are computed as such: the frames that a kernel covers and the blocks of pixels
that it strides over become channels, and the number of channels is padded. On CPUs this would only cost time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.compilation import compile_graph
from vidvq.model.kernels import HAS_TRITON

_ALIGNMENT = 8
# Zero padding around a frame (pixels).
_PADDING = 1
# Slope of the leaky ReLU below 0.
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
        padding = (taps // 2, _PADDING, _PADDING)
        first = _Conv(3, width, (taps, 4, 4), stride=(1, 2, 2), padding=padding)
        layers: list[nn.Module] = [first, nn.LeakyReLU(_SLOPE)]
        for _ in range(config.layers):
            layers += [
                _Conv(width, width * 2, (taps, 4, 4), stride=2, padding=padding),
                _NormAndActivation(8 if width % 4 == 0 else 1, width * 2),
                # Keeps the indices of layers in checkpoints, where the activation is a layer of its own.
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
        if prefers_channels_last(video) and torch.is_autocast_enabled(video.device.type):
            # Before the padding, which would otherwise copy fp32.
            video = video.to(torch.get_autocast_dtype(video.device.type))
        if not self.by_frame:
            return self.layers(video)
        # A batch of images: group norm must not mix statistics of different frames.
        logits = self.layers(rearrange(video, "b c t h w -> (b t) c 1 h w"))
        return rearrange(logits, "(b t) c 1 h w -> b c t h w", t=video.shape[2])


def prefers_channels_last(x: Tensor) -> bool:
    """Return whether the device of ``x`` has fast 2D convolutions, channels last, for multiples of 8 channels."""
    return x.is_cuda


class _Conv(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if not prefers_channels_last(x):
            return super().forward(x)
        (taps, _, _), (step, stride, _) = self.kernel_size, self.stride
        # A convolution with stride s is one without stride over blocks of s x s pixels.
        weight = rearrange(self.weight, "o c k (h p) (w q) -> o (k p q c) h w", p=stride, q=stride)
        padding, bias = (0 if stride > 1 else _PADDING), self.bias
        assert bias is not None
        frames = rearrange(x, "b c t h w -> b t h w c")
        before, edge = taps // 2, _PADDING - padding
        # No block that the kernel covers contains an odd last row or column.
        bottom, right = (edge - size % stride for size in x.shape[3:])
        margins = (0, 0, edge, right, edge, bottom, before, before)
        frames = F.pad(frames, margins) if any(margins) else frames
        missing_inputs, missing_outputs = (-count % _ALIGNMENT for count in (weight.shape[1], len(weight)))
        image = _windows(frames, taps, step, stride, missing_inputs)
        if missing_inputs:
            # The added channels are 1. The bias is the weight of the first one, at a position that is always inside.
            added = weight.new_zeros(len(weight), missing_inputs, *weight.shape[2:])
            added[:, 0, padding, padding] = bias
            weight, bias = torch.cat([weight, added], dim=1), None
        if missing_outputs:
            weight = F.pad(weight, (*(0,) * 6, 0, missing_outputs))
            bias = None if bias is None else F.pad(bias, (0, missing_outputs))
        y = F.conv2d(image, weight, bias, padding=padding)[:, : self.out_channels]
        return rearrange(y, "(b t) c h w -> b c t h w", b=len(x))


def _windows(frames: Tensor, taps: int, step: int, block: int, ones: int) -> Tensor:
    """Stack the frames that a kernel covers, and the pixels of each block, as channels.

    Args:
        frames: ``b t (h block) (w block) c``.
        taps: frames that the kernel covers.
        step: stride of the kernel over time (frames).
        block: stride of the kernel over height and width (pixels).
        ones: number of channels of ones to append.

    Returns:
        Windows ``(b t') (taps block block c + ones) h w``, channels last in memory.
    """
    blocks = rearrange(frames, "b t (h p) (w q) c -> b t h p w q c", p=block, q=block)
    if not torch.compiler.is_compiling():
        # The gradient of `unfold` is one kernel.
        windows = rearrange(blocks.unfold(1, taps, step), "b t h p w q c k -> (b t) h w (k p q c)")
        windows = F.pad(windows, (0, ones), value=1) if ones else windows.contiguous()
        return rearrange(windows, "n h w c -> n c h w")
    # Compiled, the gradient of `unfold` would be a sum by atomic operations; slices compile to one kernel each way.
    last = frames.shape[1] - taps
    slices = [blocks[:, first : first + last + 1 : step] for first in range(taps)]
    parts = [rearrange(part, "b t h p w q c -> (b t) (p q c) h w") for part in slices]
    added = parts[0].new_ones(1).expand(len(parts[0]), ones, *parts[0].shape[2:])
    return torch.cat([*parts, added], dim=1).contiguous(memory_format=torch.channels_last)


class _NormAndActivation(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        # A compiler generates such kernels itself.
        if HAS_TRITON and prefers_channels_last(x) and not torch.compiler.is_compiling():
            from vidvq.model.kernels.group_norm import GroupNormLeakyRelu

            return GroupNormLeakyRelu.apply(x, self.weight, self.bias, self.num_groups, self.eps, _SLOPE)  # type: ignore[return-value]
        return F.leaky_relu(super().forward(x), _SLOPE)
