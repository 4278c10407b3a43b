"""Finite scalar quantization: each channel is rounded to a few levels, and the codebook is the grid of them.

Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3 and appendix A.1.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.quantize.vq import MAX_SIZE, straight_through

_MARGIN = 1e-3


@dataclass(frozen=True)
class FSQConfig:
    """A grid of codes.

    Attributes:
        kind: ``fsq``: finite scalar quantization, a fixed grid.
        levels: number of levels of each channel of the grid; their product is the number of codes. If there are not as
            many channels as latent channels, a learned projection maps to the grid and back.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if min(self.levels, default=0) < 3 or self.size > MAX_SIZE:
            raise UsageError(
                f"levels={list(self.levels)} must each be at least 3 and have a product of at most {MAX_SIZE}; "
                "for two levels take kind=lfq"
            )

    @property
    def size(self) -> int:
        """Number of codes."""
        return prod(self.levels)


class FiniteScalarQuantizer(nn.Module):
    """``n d`` latents to codes. Arithmetic is fp32 whatever the network's precision."""

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig, dim: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.projection = Projection(dim, len(config.levels))
        # Integers, so that no change of the network's precision reaches them; not learned, so not saved.
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("basis", torch.tensor([1, *config.levels[:-1]]).cumprod(0), persistent=False)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize, with a straight-through gradient of the rounding.

        Args:
            latents: ``n d``, any float type.

        Returns:
            quantized ``n d`` in the latents' type, codes ``n``, and a loss of 0: a bounded grid needs no commitment.
        """
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self._bound(self.projection.project_in(latents))
            digits = bounded.round()
            quantized = self.projection.project_out(straight_through(bounded, digits) / self._half())
            return quantized.to(latents.dtype), self._pack(digits), bounded.new_zeros(())

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """``n d`` -> codes ``n`` int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._pack(self._bound(self.projection.project_in(latents)).round())

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> their vectors, fp32, with a last axis ``d``."""
        with torch.autocast(codes.device.type, enabled=False):
            digits = (codes[..., None] // self.basis) % self.levels - self._half()
            return self.projection.project_out(digits.float() / self._half())

    def _half(self) -> Tensor:
        return self.levels // 2

    def _bound(self, z: Tensor) -> Tensor:
        """``n l`` to the range that rounds to -floor(L / 2) ... ceil(L / 2) - 1, L values around 0 (appendix A.1)."""
        half = (self.levels - 1) * ((1 + _MARGIN) / 2)
        # An even number of levels has no middle: half a step off, and 0 still falls on a level.
        offset = 0.5 * (self.levels % 2 == 0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def _pack(self, digits: Tensor) -> Tensor:
        return ((digits.long() + self._half()) * self.basis).sum(dim=-1)


class Projection(nn.Module):
    """A learned linear map from latents ``n d`` to ``n inner`` and one back; nothing where both are as wide."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.inward = self.outward = None
        if dim != inner:
            self.inward, self.outward = nn.Linear(dim, inner), nn.Linear(inner, dim)
            # It starts as a change of basis and its inverse: latents keep their scale, on which the levels depend.
            nn.init.orthogonal_(self.inward.weight)
            for layer in (self.inward, self.outward):
                nn.init.zeros_(layer.bias)
            with torch.no_grad():
                self.outward.weight.copy_(self.inward.weight.T)

    def project_in(self, latents: Tensor) -> Tensor:
        """``... d`` -> ``... inner`` fp32."""
        return _linear(latents, self.inward)

    def project_out(self, grid: Tensor) -> Tensor:
        """``... inner`` -> ``... d`` fp32."""
        return _linear(grid, self.outward)


def _linear(x: Tensor, layer: nn.Linear | None) -> Tensor:
    return x.float() if layer is None else F.linear(x.float(), layer.weight.float(), layer.bias.float())
