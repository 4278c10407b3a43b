"""The interface between the tokenizer and its quantizers."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Quantizer(nn.Module):
    """Converts latents to codes of one codebook and back. Implementations compute in fp32.

    A training pass has two parts: :meth:`begin_pass` decides on the host, and :meth:`run_pass` computes on the device
    as one graph. Calling the module runs both, or only :meth:`run_pass` while torch.compile traces it.

    Attributes:
        size: number of codes.
    """

    size: int

    @property
    def warming_up(self) -> bool:
        """Whether the next training pass passes latents unquantized."""
        return False

    @property
    def passes_through(self) -> bool:
        """Whether the current training pass passes latents unquantized."""
        return False

    def skip_warmup(self) -> None:
        """Train the present codebook further, as if its warm-up had ended."""

    def begin_pass(self) -> None:
        """Decide what the next :meth:`run_pass` does, in training mode; without effect otherwise."""

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize, estimating the gradient to the latents; in training mode also update the codebook.

        Args:
            latents: ``n d``, any float type.

        Returns:
            Quantized latents ``n d`` of the same type, codes ``n`` int64, and the loss (a scalar).
        """
        if len(latents) and not torch.compiler.is_compiling():
            self.begin_pass()
        return self.run_pass(latents)

    @abstractmethod
    def run_pass(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize as :meth:`forward` does, after :meth:`begin_pass`."""

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """Map latents ``n d`` to codes ``n`` int64."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes of any shape ``...`` to their vectors ``... d`` fp32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantizer":
        # Buffers follow changes of the device but not of the data type: bf16 codebooks lose codes.
        buffers, self._buffers = self._buffers, {}
        super()._apply(fn, recurse)
        self._buffers = {
            name: buffer if buffer is None else buffer.to(fn(buffer[:0] if buffer.ndim else buffer).device)
            for name, buffer in buffers.items()
        }
        return self
