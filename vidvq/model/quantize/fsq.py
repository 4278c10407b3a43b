"""Finite scalar quantization: each channel is rounded to a few levels; the codebook is the grid of all combinations.

Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3 and appendix A.1.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.vq import MAX_CODEBOOK_SIZE, straight_through

_MARGIN = 1e-3
# With more levels, the margin at the end of the range would round to a level outside of it.
_MAX_LEVELS = round(1 / _MARGIN)


@dataclass(frozen=True)
class FSQConfig:
    """A codebook for finite scalar quantization.

    Attributes:
        kind: ``fsq``: finite scalar quantization, a fixed grid of codes.
        levels: levels of each channel of the grid (3 to 1000); their product is the number of codes. Learned
            projections map between latents and the grid if their numbers of channels differ.
    """

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if min(self.levels, default=0) < 3 or max(self.levels) > _MAX_LEVELS or self.size > MAX_CODEBOOK_SIZE:
            raise UsageError(
                f"levels={list(self.levels)} must each be from 3 to {_MAX_LEVELS} and have a product of at most "
                f"{MAX_CODEBOOK_SIZE}; for two levels use kind=lfq"
            )

    @property
    def size(self) -> int:
        """Number of codes."""
        return prod(self.levels)


class FiniteScalarQuantizer(Quantizer):
    """Finite scalar quantizer; see :class:`~vidvq.model.quantize.interface.Quantizer`.

    Args:
        config: the codebook.
        dim: channels of a latent.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig, dim: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.projection = Projection(dim, len(config.levels))
        # Constants, so not saved.
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("basis", torch.tensor([1, *config.levels[:-1]]).cumprod(0), persistent=False)

    def run_pass(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.run_pass`; the gradient is straight-through.

        Args:
            latents: ``n d``, any float type.

        Returns:
            Quantized latents ``n d`` of the same type, codes ``n``, and a loss of 0 (a bounded grid needs no commitment
            loss).
        """
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self._bound(self.projection.project_in(latents))
            digits = bounded.round()
            quantized = self.projection.project_out(straight_through(bounded, digits) / self._half())
            return quantized.to(latents.dtype), self._pack(digits), bounded.new_zeros(())

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Map latents ``n d`` to codes ``n`` int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._pack(self._bound(self.projection.project_in(latents)).round())

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes of any shape ``...`` to their vectors ``... d`` fp32."""
        with torch.autocast(codes.device.type, enabled=False):
            digits = (codes[..., None] // self.basis) % self.levels - self._half()
            return self.projection.project_out(digits.float() / self._half())

    def _half(self) -> Tensor:
        return self.levels // 2

    def _bound(self, z: Tensor) -> Tensor:
        """Squash ``n l`` to the range that rounds to the L values -floor(L / 2) ... ceil(L / 2) - 1 (appendix A.1)."""
        half = (self.levels - 1) * ((1 + _MARGIN) / 2)
        # An even number of levels has no middle level: shift by half a step, so that 0 is a level.
        offset = 0.5 * (self.levels % 2 == 0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def _pack(self, digits: Tensor) -> Tensor:
        return ((digits.long() + self._half()) * self.basis).sum(dim=-1)


class Projection(nn.Module):
    """Learned linear maps from latents to another number of channels and back; the identity if the numbers are equal.

    Args:
        dim: channels of a latent.
        inner: channels inside the quantizer.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.inward = self.outward = None
        if dim != inner:
            self.inward, self.outward = nn.Linear(dim, inner), nn.Linear(inner, dim)
            # Initialized to an orthogonal map and its transpose, which keep the scale of latents that levels rely on.
            nn.init.orthogonal_(self.inward.weight)
            for layer in (self.inward, self.outward):
                nn.init.zeros_(layer.bias)
            with torch.no_grad():
                self.outward.weight.copy_(self.inward.weight.T)

    def project_in(self, latents: Tensor) -> Tensor:
        """Map ``... d`` to ``... inner`` fp32."""
        return _linear(latents, self.inward)

    def project_out(self, grid: Tensor) -> Tensor:
        """Map ``... inner`` to ``... d`` fp32."""
        return _linear(grid, self.outward)


def _linear(x: Tensor, layer: nn.Linear | None) -> Tensor:
    return x.float() if layer is None else F.linear(x.float(), layer.weight.float(), layer.bias.float())
