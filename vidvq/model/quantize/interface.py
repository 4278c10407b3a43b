"""The interface between the tokenizer and its quantizers."""

from typing import Any, Protocol

from torch import Tensor


class Quantizer(Protocol):
    """Converts latents to codes of one codebook and back. Implementations are modules and compute in fp32.

    Calling a quantizer maps latents ``n d`` of any float type to quantized latents ``n d`` of the same type, codes
    ``n`` int64 and a scalar loss.

    Attributes:
        size: number of codes.
    """

    size: int

    # Typed like `nn.Module.__call__`.
    __call__: Any

    def encode(self, latents: Tensor) -> Tensor:
        """Map latents ``n d`` to codes ``n`` int64."""
        ...

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes of any shape ``...`` to their vectors ``... d`` fp32."""
        ...
