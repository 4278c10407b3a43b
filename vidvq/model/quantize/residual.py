"""Residual vector quantization: each codebook takes what the ones before it left over.

Zeghidour et al. 2021, "SoundStream: An End-to-End Neural Audio Codec", section III-C.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vidvq.errors import UsageError
from vidvq.model.quantize.vq import MAX_SIZE, VectorQuantizer, VQConfig, pass_gradient


@dataclass(frozen=True)
class ResidualConfig:
    """Codebooks one after another, seen from outside as one of ``layer.size ** depth`` codes.

    Attributes:
        kind: ``residual``: several vector quantizers, each on the residual of those before.
        depth: number of codebooks.
        layer: settings of each codebook.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["residual"] = "residual"
    depth: int = 2
    layer: VQConfig = field(default_factory=lambda: VQConfig(size=32))

    def __post_init__(self) -> None:
        if self.depth < 1 or self.size > MAX_SIZE:
            raise UsageError(
                f"depth={self.depth} of size={self.layer.size} must be at least 1 and make at most {MAX_SIZE} codes "
                "(size ** depth)"
            )
        if self.layer.cosine:
            raise UsageError("layer.cosine=True must be False: what is left over has a length as well as a direction")

    @property
    def size(self) -> int:
        """Number of codes, one for every choice of one code per layer."""
        return self.layer.size**self.depth


class ResidualQuantizer(nn.Module):
    """``n d`` latents to codes. A code's digits to the base ``layer.size`` are the layers' codes, the first highest.

    One number per position keeps every shape and format as it is with one codebook, at the same bits.
    """

    def __init__(self, config: ResidualConfig, dim: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.layers = nn.ModuleList(VectorQuantizer(config.layer, dim) for _ in range(config.depth))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize; in training mode also move the codebooks.

        Layers are placed one after another: while one warms up, what it is given passes, and those after it wait.

        Args:
            latents: ``n d``, any float type.

        Returns:
            quantized ``n d`` in the latents' type, codes ``n``, and the mean of the layers' losses (a scalar).
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = latents.float()
            total, codes = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.long, device=x.device)
            loss, waiting = x.new_zeros(()), False
            for layer in self.layers:
                assert isinstance(layer, VectorQuantizer)
                codes = codes * layer.size
                if not waiting:
                    waiting = layer.warming
                    part, digits, layer_loss = layer(x - total)
                    # The gradient to the latents passes once, through the sum, not once per layer.
                    total, codes, loss = total + part.detach(), codes + digits, loss + layer_loss / self.config.depth
            return pass_gradient(x, total, self.config.layer.rotation).to(latents.dtype), codes, loss

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """``n d`` -> codes ``n`` int64."""
        left, codes = latents.float(), torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        total = torch.zeros_like(left)
        for layer in self.layers:
            assert isinstance(layer, VectorQuantizer)
            digits = layer.encode(left - total)
            total, codes = total + layer.lookup(digits), codes * layer.size + digits
        return codes

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> their vectors, fp32, with a last axis ``d``."""
        # The first layer's first, as when it was encoded: sums in another order differ in their last bit.
        places = [self.config.layer.size**place for place in reversed(range(self.config.depth))]
        parts = [
            layer.lookup(codes // place % layer.size)  # type: ignore[operator]
            for layer, place in zip(self.layers, places, strict=True)
        ]
        return sum(parts[1:], parts[0])
