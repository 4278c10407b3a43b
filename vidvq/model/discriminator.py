"""A PatchGAN discriminator with one logit per space-time patch or per frame patch (Isola et al. 2017).

GPUs compute convolutions with tensor cores if channels are the last axis in memory and multiples of 8. There, all
activations are channels last, and the pixels and the logits are padded to 8 channels. Elsewhere padding would be work.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError

_ALIGNMENT = 8


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
        layers: list[nn.Module] = [first, nn.LeakyReLU(0.2)]
        for _ in range(config.layers):
            layers += [
                _Conv(width, width * 2, (taps, 4, 4), stride=2, padding=padding),
                _GroupNorm(8 if width % 4 == 0 else 1, width * 2),
                nn.LeakyReLU(0.2),
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
        weight, bias = self.weight, self.bias
        assert bias is not None
        if inputs := -self.in_channels % _ALIGNMENT:
            # A further channel of ones, whose weight is the bias, at the tap that is never outside of the video.
            x = rearrange(F.pad(rearrange(x, "b c t h w -> b t h w c"), (0, inputs), value=1), "b t h w c -> b c t h w")
            added = weight.new_zeros(len(weight), inputs, *self.kernel_size)
            added[:, 0, self.kernel_size[0] // 2, 1, 1] = bias
            weight, bias = torch.cat([weight, added], dim=1), None
        if outputs := -self.out_channels % _ALIGNMENT:
            weight = F.pad(weight, (*(0,) * 8, 0, outputs))
            bias = None if bias is None else F.pad(bias, (0, outputs))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        return self._conv_forward(x, weight, bias)[:, : self.out_channels]


class _GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        # torch's kernel for GPUs would transpose channels-last input; a compiler generates one that does not.
        if not has_tensor_cores(x) or torch.compiler.is_compiling():
            return super().forward(x)
        return GroupNormChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps)


class GroupNormChannelsLast(torch.autograd.Function):
    """Group norm (Wu and He 2018) that keeps the memory format of its input ``b c ...``.

    Statistics and sums are fp32; the output and its gradient have the type of the input. It has no second derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """Normalize ``x``; ``weight`` and ``bias`` are ``c``."""
        with torch.autocast(x.device.type, enabled=False):
            # Statistics are b g 1, values of channels b g c/g. Sums of bf16 are fp32 without a copy of the input.
            axes, of_group, positions = tuple(range(2, x.ndim)), (groups, -1), x[0, 0].numel()
            mean = x.mean(axes, dtype=torch.float).unflatten(1, of_group).mean(2, keepdim=True)
            norms = torch.linalg.vector_norm(x, dim=axes, dtype=torch.float).unflatten(1, of_group)
            square = norms.square().mean(2, keepdim=True) / positions
            inverse = torch.addcmul(square, mean, mean, value=-1).clamp(min=0).add(eps).rsqrt()
            scale = inverse * weight.unflatten(0, of_group)
            ctx.save_for_backward(x, mean, inverse, scale)
            return _affine(x, scale, torch.addcmul(bias.unflatten(0, of_group), mean, scale, value=-1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        """Return the gradients of the input, weight and bias."""
        x, mean, inverse, scale = ctx.saved_tensors
        axes, of_group, positions = tuple(range(2, x.ndim)), scale.shape[1:], x[0, 0].numel()
        total = gradient.sum(axes, dtype=torch.float).unflatten(1, of_group)
        product = (gradient * x).sum(axes, dtype=torch.float).unflatten(1, of_group)
        # Of the gradient and normalized values.
        product = torch.addcmul(product, mean, total, value=-1) * inverse
        slope = (product * scale).mean(2, keepdim=True) * inverse / -positions
        shift = (total * scale).mean(2, keepdim=True) / -positions - slope * mean
        result = _affine(x, slope.expand_as(scale), shift.expand_as(scale))
        torch.addcmul(result, gradient, _per_channel(scale, x), out=result)
        return result, product.sum(0).flatten(), total.sum(0).flatten(), None, None


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute ``scale x + shift`` in fp32, rounded to the type of ``x``; scale and shift are ``b g c/g``."""
    return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x), out=torch.empty_like(x))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
