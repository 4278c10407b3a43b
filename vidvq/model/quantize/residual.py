"""Residual vector quantization: each layer quantizes the residual of the layers before it.

Zeghidour et al. 2021, "SoundStream: An End-to-End Neural Audio Codec", section III-C.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vidvq.errors import UsageError
from vidvq.model.quantize.vq import MAX_CODEBOOK_SIZE, VectorQuantizer, VQConfig, estimate_gradient


@dataclass(frozen=True)
class ResidualConfig:
    """Residual codebooks that act as one codebook of ``layer.size ** depth`` codes.

    Attributes:
        kind: ``residual``: residual vector quantization, several codebooks in sequence.
        depth: number of layers (1 or more).
        layer: codebook of each layer; ``cosine`` is not supported.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["residual"] = "residual"
    depth: int = 2
    layer: VQConfig = field(default_factory=lambda: VQConfig(size=32))

    def __post_init__(self) -> None:
        if self.depth < 1 or self.size > MAX_CODEBOOK_SIZE:
            raise UsageError(
                f"depth={self.depth} of size={self.layer.size} must be at least 1 and make at most "
                f"{MAX_CODEBOOK_SIZE} codes (size ** depth)"
            )
        if self.layer.cosine:
            raise UsageError("layer.cosine=True must be False: a residual has a length as well as a direction")

    @property
    def size(self) -> int:
        """Number of codes: all combinations of one code per layer."""
        return self.layer.size**self.depth


class ResidualQuantizer(nn.Module):
    """Residual vector quantizer; see :class:`~vidvq.model.quantize.interface.Quantizer`.

    The digits of a code in base ``layer.size`` are the codes of the layers, the first layer highest. Shapes and formats
    are therefore those of a single codebook, at the same number of bits.

    Args:
        config: the codebook.
        dim: channels of a latent.
    """

    def __init__(self, config: ResidualConfig, dim: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.layers = nn.ModuleList(VectorQuantizer(config.layer, dim) for _ in range(config.depth))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize; in training mode also update the codebooks.

        Layers warm up one after another: a layer in warm-up passes its input unquantized, and later layers wait.

        Args:
            latents: ``n d``, any float type.

        Returns:
            Quantized latents ``n d`` of the same type, codes ``n``, and the mean loss of the layers (a scalar).
        """
        if not torch.compiler.is_compiling():
            self.begin_pass()
        return self.run_pass(latents)

    def run_pass(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Like :meth:`forward`, after :meth:`begin_pass`."""
        with torch.autocast(latents.device.type, enabled=False):
            x = latents.float()
            total, codes = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.long, device=x.device)
            loss, waiting = x.new_zeros(()), False
            for layer in self.layers:
                assert isinstance(layer, VectorQuantizer)
                codes = codes * layer.size
                if not waiting:
                    waiting = self.training and layer.passes_through
                    part, digits, layer_loss = layer.run_pass(x - total)
                    # Gradients reach the latents once, through the sum, not once per layer.
                    total, codes, loss = total + part.detach(), codes + digits, loss + layer_loss / self.config.depth
            return estimate_gradient(x, total, self.config.layer.rotation).to(latents.dtype), codes, loss

    def begin_pass(self) -> None:
        """See :meth:`VectorQuantizer.begin_pass`. Layers after one in its warm-up wait."""
        if not self.training:
            return
        for layer in self.layers:
            assert isinstance(layer, VectorQuantizer)
            layer.begin_pass()
            if layer.passes_through:
                return

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Map latents ``n d`` to codes ``n`` int64."""
        x, codes = latents.float(), torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        total = torch.zeros_like(x)
        for layer in self.layers:
            assert isinstance(layer, VectorQuantizer)
            digits = layer.encode(x - total)
            total, codes = total + layer.lookup(digits), codes * layer.size + digits
        return codes

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes of any shape ``...`` to their vectors ``... d`` fp32."""
        # Sum in the order of encoding: another order rounds differently.
        weights = [self.config.layer.size**digit for digit in reversed(range(self.config.depth))]
        parts = [
            layer.lookup(codes // weight % layer.size)  # type: ignore[operator]
            for layer, weight in zip(self.layers, weights, strict=True)
        ]
        return sum(parts[1:], parts[0])
