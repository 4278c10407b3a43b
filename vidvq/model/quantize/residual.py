"""Residual vector quantization: each layer quantizes the residual of the layers before it.

Zeghidour et al. 2021, "SoundStream: An End-to-End Neural Audio Codec", section III-C.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from vidvq.errors import UsageError
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.vq import MAX_CODEBOOK_SIZE, VectorQuantizer, VQConfig, estimate_gradient


@dataclass(frozen=True)
class ResidualConfig:
    """Residual codebooks that act as one codebook of ``layer.size ** depth`` codes.

    Attributes:
        kind: ``residual``: residual vector quantization, several codebooks in sequence.
        depth: number of layers (1 or more).
        layer: codebook of each layer; ``cosine`` is not supported.
    """

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

    @property
    def warmup(self) -> int:
        """Training passes until all layers have codes, as they warm up one after another (micro-batches)."""
        return self.layer.warmup * self.depth


class ResidualQuantizer(Quantizer):
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

    @property
    def warming_up(self) -> bool:
        """See :attr:`Quantizer.warming_up`."""
        return any(layer.warming_up for layer in self._layers)

    @property
    def passes_through(self) -> bool:
        """See :attr:`Quantizer.passes_through`. A layer in its warm-up passes its input on, and later layers wait."""
        return any(layer.passes_through for layer in self._layers)

    def skip_warmup(self) -> None:
        """See :meth:`Quantizer.skip_warmup`."""
        for layer in self._layers:
            layer.skip_warmup()

    def begin_pass(self) -> None:
        """See :meth:`Quantizer.begin_pass`. Layers warm up one after another."""
        for layer in self._layers:
            layer.begin_pass()
            if layer.passes_through:
                return

    def run_pass(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.run_pass`.

        Args:
            latents: ``n d``, any float type.

        Returns:
            Quantized latents ``n d`` of the same type, codes ``n``, and the mean loss of the layers (a scalar).
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = latents.float()
            total, codes = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.long, device=x.device)
            loss, waiting = x.new_zeros(()), False
            for layer in self._layers:
                codes = codes * layer.size
                if not waiting:
                    waiting = layer.passes_through
                    part, digits, layer_loss = layer.run_pass(x - total)
                    # Gradients reach the latents once, through the sum, not once per layer.
                    total, codes, loss = total + part.detach(), codes + digits, loss + layer_loss / self.config.depth
            return estimate_gradient(x, total, self.config.layer.rotation).to(latents.dtype), codes, loss

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Map latents ``n d`` to codes ``n`` int64."""
        x, codes = latents.float(), torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        total = torch.zeros_like(x)
        for layer in self._layers:
            digits = layer.encode(x - total)
            total, codes = total + layer.lookup(digits), codes * layer.size + digits
        return codes

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes of any shape ``...`` to their vectors ``... d`` fp32."""
        # Sum in the order of encoding: another order rounds differently.
        weights = [self.config.layer.size**digit for digit in reversed(range(self.config.depth))]
        parts = [
            layer.lookup(codes // weight % layer.size) for layer, weight in zip(self._layers, weights, strict=True)
        ]
        return sum(parts[1:], parts[0])

    @property
    def _layers(self) -> list[VectorQuantizer]:
        return list(self.layers)  # type: ignore[arg-type]
