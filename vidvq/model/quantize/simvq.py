"""Vector quantization with a frozen codebook under a learned linear map, which moves all codes at once.

Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (SimVQ),
section 4.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.search import nearest_codes
from vidvq.model.quantize.vq import MAX_CODEBOOK_SIZE, estimate_gradient


@dataclass(frozen=True)
class SimVQConfig:
    """A codebook for vector quantization whose codes are a learned linear map of random vectors.

    Attributes:
        kind: ``simvq``: a frozen random codebook under a learned linear map; no code dies.
        size: number of codes (2 to 16777216).
        codebook: weight of the codebook loss, which trains the map, relative to the commitment loss (above 0).
        rotation: use the rotation trick instead of the straight-through gradient.
    """

    kind: Literal["simvq"] = "simvq"
    size: int = 1024
    codebook: float = 4.0
    rotation: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MAX_CODEBOOK_SIZE:
            raise UsageError(f"size={self.size} must be from 2 to {MAX_CODEBOOK_SIZE}")
        if self.codebook <= 0:
            raise UsageError(f"codebook={self.codebook} must be above 0: nothing else trains the codes")


class SimVectorQuantizer(Quantizer):
    """SimVQ; see :class:`~vidvq.model.quantize.interface.Quantizer`.

    Args:
        config: the codebook.
        dim: channels of a latent.
    """

    codebook: Tensor

    def __init__(self, config: SimVQConfig, dim: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.register_buffer("codebook", torch.randn(config.size, dim) / dim**0.5)
        self.map = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.map.weight)

    def run_pass(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.run_pass`.

        Args:
            latents: ``n d``, any float type.

        Returns:
            Quantized latents ``n d`` of the same type, codes ``n``, and the loss: commitment + ``codebook`` x codebook
            loss (a scalar).
        """
        with torch.autocast(latents.device.type, enabled=False):
            x, vectors = latents.float(), self._vectors()
            codes = nearest_codes(x.detach(), vectors.detach())
            quantized = vectors[codes]
            # A zero gradient for an empty batch: some optimizers reject parameters without one.
            loss = vectors.sum() * 0
            if len(x):
                loss = F.mse_loss(x, quantized.detach()) + self.config.codebook * F.mse_loss(quantized, x.detach())
            return estimate_gradient(x, quantized, self.config.rotation).to(latents.dtype), codes, loss

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Map latents ``n d`` to codes ``n`` int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return nearest_codes(latents.float(), self._vectors())

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes of any shape ``...`` to their vectors ``... d`` fp32."""
        with torch.autocast(codes.device.type, enabled=False):
            return self._vectors()[codes]

    def _vectors(self) -> Tensor:
        return F.linear(self.codebook, self.map.weight.float())
