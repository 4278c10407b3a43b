"""Lookup-free quantization: each channel is quantized to its sign; the codes are the corners of a hypercube.

Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (MAGVIT-v2), section 3.1;
with latents and codes on the unit sphere, Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical
Quantization" (BSQ), section 4.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.quantize.collectives import all_reduce_mean
from vidvq.model.quantize.fsq import Projection
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.vq import MAX_CODEBOOK_SIZE, straight_through

_TINY = 1e-6


@dataclass(frozen=True)
class LFQConfig:
    """A codebook for lookup-free quantization.

    Attributes:
        kind: ``lfq``: lookup-free quantization, one bit per channel.
        size: number of codes (a power of two). Learned projections map between latents and bits if latents do not have
            log2(size) channels.
        spherical: project latents and codes to the unit sphere (BSQ); the batch entropy is then computed bit by bit.
        temperature: temperature of the soft assignment to codes in the entropies (above 0).
        entropy: weight of the entropy loss relative to the commitment loss (0 or more); ``loss.commitment`` scales
            both.
        diversity: weight of the batch entropy in the entropy loss (gamma in the paper, 0 or more).
    """

    kind: Literal["lfq"] = "lfq"
    size: int = 1024
    spherical: bool = False
    temperature: float = 0.01
    entropy: float = 0.4
    diversity: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MAX_CODEBOOK_SIZE or self.size & (self.size - 1):
            low = 1 << min(max(self.size, 2).bit_length() - 1, MAX_CODEBOOK_SIZE.bit_length() - 1)
            near = f"{low} or {2 * low}" if 2 <= self.size < MAX_CODEBOOK_SIZE else f"{low}"
            raise UsageError(f"size={self.size} must be a power of two from 2 to {MAX_CODEBOOK_SIZE}; nearest: {near}")
        if self.temperature <= 0 or self.entropy < 0 or self.diversity < 0:
            raise UsageError(f"{self} must have temperature > 0, entropy >= 0 and diversity >= 0")

    @property
    def bits(self) -> int:
        """Number of bits of a code."""
        return self.size.bit_length() - 1


class LookupFreeQuantizer(Quantizer):
    """Lookup-free quantizer; see :class:`~vidvq.model.quantize.interface.Quantizer`. Channel 0 is the highest bit.

    Args:
        config: the codebook.
        dim: channels of a latent.
    """

    bit_weights: Tensor

    def __init__(self, config: LFQConfig, dim: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.projection = Projection(dim, config.bits)
        self.register_buffer("bit_weights", 1 << torch.arange(config.bits - 1, -1, -1), persistent=False)

    def run_pass(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.run_pass`; the gradient is straight-through.

        Args:
            latents: ``n d``, any float type.

        Returns:
            Quantized latents ``n d`` of the same type, codes ``n``, and the loss: commitment + ``entropy`` x (sample
            entropy - ``diversity`` x batch entropy). In training the batch covers all ranks.
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = self._prepare(latents)
            bits = x > 0
            corners = self._corners(bits)
            quantized = self.projection.project_out(straight_through(x, corners)).to(latents.dtype)
            if not len(x):
                return quantized, self._pack(bits), x.new_zeros(())
            sample, batch = self.entropies(x)
            loss = F.mse_loss(x, corners) + self.config.entropy * (sample - self.config.diversity * batch)
            return quantized, self._pack(bits), loss

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Map latents ``n d`` to codes ``n`` int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._pack(self._prepare(latents) > 0)

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes of any shape ``...`` to their vectors ``... d`` fp32."""
        with torch.autocast(codes.device.type, enabled=False):
            return self.projection.project_out(self._corners((codes[..., None] & self.bit_weights) != 0))

    def entropies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the sample entropy and the batch entropy (nats) of soft assignments to codes.

        The soft assignment of x is softmax(-|x - c|^2 / temperature) over all codes c. Codes are all combinations of
        signs, so it factorizes over channels into sigmoid(4 s x / temperature), with s the coordinate of a corner. The
        sample entropy, the mean entropy of each assignment, is therefore exactly a sum over channels. The batch
        entropy, the entropy of the mean assignment, is not: BSQ uses the sum of the entropies of the mean bits, an
        upper bound; LFQ computes it exactly, as a product of a table of the upper bits and one of the lower bits.
        Neither materializes latents x codes.

        Args:
            x: ``n bits`` before the sign.

        Returns:
            The sample entropy and the batch entropy, scalars.
        """
        # The squared distances to +s and -s differ by 4 s x.
        logits = x * (4 * self._scale() / self.config.temperature)
        sharp = logits.abs()
        # p ln(1/p) + (1-p) ln(1/(1-p)) in a numerically stable form.
        sample = (F.softplus(-sharp) + sharp * torch.sigmoid(-sharp)).sum(dim=1).mean()
        ones = torch.sigmoid(logits)
        if self.config.spherical:
            mean = self._mean_over_ranks(ones.mean(dim=0)).clamp(_TINY, 1 - _TINY)
            return sample, (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum()
        middle = self.config.bits // 2
        shares = self._mean_over_ranks(
            (_joint_probabilities(ones[:, :middle]).T @ _joint_probabilities(ones[:, middle:])) / len(x)
        )
        return sample, -(shares * shares.clamp(min=_TINY**2).log()).sum()

    def _mean_over_ranks(self, mean: Tensor) -> Tensor:
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


def _joint_probabilities(ones: Tensor) -> Tensor:
    """Map probabilities ``n bits`` of single bits to those ``n 2^bits`` of all numbers; bit 0 is the highest."""
    table = torch.ones_like(ones[:, :0].sum(dim=1, keepdim=True))
    for one in ones.unbind(dim=1):
        table = (table[:, :, None] * torch.stack([1 - one, one], dim=1)[:, None]).flatten(1)
    return table
