"""Lookup-free quantization: each channel is a bit, its sign; the codebook is the corners of a cube.

Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (MAGVIT-v2), section 3.1, and
for the corners of a cube in the unit sphere Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical
Quantization" (BSQ), section 4.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.quantize.collectives import all_reduce_mean
from vidvq.model.quantize.fsq import Projection
from vidvq.model.quantize.vq import MAX_SIZE, straight_through

_TINY = 1e-6


@dataclass(frozen=True)
class LFQConfig:
    """A codebook of bits.

    Attributes:
        kind: ``lfq``: lookup-free quantization, one bit per channel; with ``spherical`` BSQ.
        size: number of codes, a power of two. If latents do not have log2(size) channels, a learned projection maps to
            the bits and back.
        spherical: BSQ: latents and codes are on the unit sphere, and the entropy of the batch is computed per bit.
        temperature: temperature of the soft assignment to codes in the entropies.
        entropy: weight of the entropy term relative to the commitment's, which ``loss.commitment`` weighs both by.
        diversity: weight of the batch's entropy in it (gamma).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["lfq"] = "lfq"
    size: int = 1024
    spherical: bool = False
    temperature: float = 0.01
    entropy: float = 0.4
    diversity: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MAX_SIZE or self.size & (self.size - 1):
            low = 1 << min(max(self.size, 2).bit_length() - 1, MAX_SIZE.bit_length() - 1)
            near = f"{low} or {2 * low}" if 2 <= self.size < MAX_SIZE else f"{low}"
            raise UsageError(f"size={self.size} must be a power of two from 2 to {MAX_SIZE}; nearest: {near}")
        if self.temperature <= 0 or self.entropy < 0 or self.diversity < 0:
            raise UsageError(f"{self} must have temperature > 0, and entropy and diversity of at least 0")

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.size.bit_length() - 1


class LookupFreeQuantizer(nn.Module):
    """``n d`` latents to codes; the first channel is the highest bit. Arithmetic is fp32 as everywhere here."""

    bit_weights: Tensor

    def __init__(self, config: LFQConfig, dim: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.projection = Projection(dim, config.bits)
        self.register_buffer("bit_weights", 1 << torch.arange(config.bits - 1, -1, -1), persistent=False)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize, with a straight-through gradient of the sign.

        Args:
            latents: ``n d``, any float type.

        Returns:
            quantized ``n d`` in the latents' type, codes ``n``, and the commitment loss + ``entropy`` x (the latents'
            own entropies - ``diversity`` x that of their mean); in training the mean is over all processes.
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = self._prepare(latents)
            bits = x > 0
            corners = self._corners(bits)
            quantized = self.projection.project_out(straight_through(x, corners)).to(latents.dtype)
            if not len(x):
                return quantized, self._pack(bits), x.new_zeros(())
            own, batch = self.entropies(x)
            loss = F.mse_loss(x, corners) + self.config.entropy * (own - self.config.diversity * batch)
            return quantized, self._pack(bits), loss

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """``n d`` -> codes ``n`` int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._pack(self._prepare(latents) > 0)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> their vectors, fp32, with a last axis ``d``."""
        with torch.autocast(codes.device.type, enabled=False):
            return self.projection.project_out(self._corners((codes[..., None] & self.bit_weights) != 0))

    def entropies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """In nats: the mean entropy of each latent's soft code, and the entropy of the mean soft code.

        The soft code is softmax(-|x - c|^2 / temperature) over all codes c. The codes being all signs of all channels,
        it is a product over channels, of sigmoid(4 s x / temperature) for a corner's coordinate s, and so the first
        entropy is a sum over channels, exactly. The second is not: BSQ takes the sum of the mean bits' entropies, an
        upper bound. LFQ takes the very entropy over the codebook; the mean soft code is then the product of two
        tables, of the upper bits and of the lower. Neither holds latents x codes.

        Args:
            x: ``n bits`` as it is before the sign is taken.

        Returns:
            two scalars.
        """
        # The squared distances to +s and -s differ by 4 s x.
        logits = x * (4 * self._scale() / self.config.temperature)
        sharp = logits.abs()
        # p ln(1/p) + (1-p) ln(1/(1-p)), written so that nothing large cancels.
        own = (F.softplus(-sharp) + sharp * torch.sigmoid(-sharp)).sum(dim=1).mean()
        ones = torch.sigmoid(logits)
        if self.config.spherical:
            mean = self._over_all(ones.mean(dim=0)).clamp(_TINY, 1 - _TINY)
            return own, (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum()
        middle = self.config.bits // 2
        shares = self._over_all((_table(ones[:, :middle]).T @ _table(ones[:, middle:])) / len(x))
        return own, -(shares * shares.clamp(min=_TINY**2).log()).sum()

    def _over_all(self, mean: Tensor) -> Tensor:
        return all_reduce_mean(mean) if self.training else mean

    def _scale(self) -> float:
        return self.config.bits**-0.5 if self.config.spherical else 1.0

    def _prepare(self, latents: Tensor) -> Tensor:
        x = self.projection.project_in(latents)
        return F.normalize(x, dim=-1) if self.config.spherical else x

    def _corners(self, bits: Tensor) -> Tensor:
        return (bits.float() * 2 - 1) * self._scale()

    def _pack(self, bits: Tensor) -> Tensor:
        return (bits * self.bit_weights).sum(dim=-1)


def _table(ones: Tensor) -> Tensor:
    """Probabilities ``n bits`` that a bit is 1 -> ``n 2^bits`` of each whole number, the first bit the highest."""
    table = torch.ones_like(ones[:, :0].sum(dim=1, keepdim=True))
    for one in ones.unbind(dim=1):
        table = (table[:, :, None] * torch.stack([1 - one, one], dim=1)[:, None]).flatten(1)
    return table
