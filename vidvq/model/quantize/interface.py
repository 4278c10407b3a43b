"""The interface between the tokenizer and its quantizers."""

from typing import Any, Protocol

from torch import Tensor


class Quantizer(Protocol):
    """Latents to codes of one codebook and back; an ``nn.Module``. Arithmetic is fp32 whatever the network's precision.

    Attributes:
        size: number of codes.
    """

    size: int

    # As nn.Module types it: latents `n d` of any float type -> (quantized `n d` in the latents' type, codes `n` int64,
    # a scalar loss).
    __call__: Any

    def encode(self, latents: Tensor) -> Tensor:
        """Latents ``n d`` to codes ``n`` int64."""
        ...

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes of any shape to their vectors, fp32, with a last axis ``d``."""
        ...
