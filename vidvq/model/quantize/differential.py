"""Adaptive differential quantization over time: each group quantizes what the groups before it did not predict.

Cummiskey, Jayant and Flanagan 1973, "Adaptive Quantization in Differential PCM Coding of Speech", applied to latents at
each position. Predictions and step sizes are functions of past codes alone, so the decoder repeats them. A static scene
is thereby coded like a residual quantizer whose depth is time.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.vq import VectorQuantizer

_TINY = 1e-6


@dataclass(frozen=True)
class DifferentialConfig:
    """Adaptive differential quantization of the latent frames after the first.

    With the quantized latent y and the step size s of the last group, the temporal codebook quantizes
    ``(z - a y) / s`` with ``a = max(0, 1 - (s / reach) ** 2)``. For a code with vector q, the next step size is
    ``s * sqrt(rms(q) / target)``.

    Attributes:
        reach: step size from which nothing is predicted (above 0); about 1.4 x the RMS of latents.
        start: step size after the first group of a stream (above 0).
        smallest: smallest step size (above 0).
        largest: largest step size (at least ``smallest``).
        target: RMS of the vector of a code at which the step size stays (above 0).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    reach: float = 2.0
    start: float = 0.5
    smallest: float = 0.1
    largest: float = 2.0
    target: float = 1.0

    def __post_init__(self) -> None:
        if min(self.reach, self.start, self.smallest, self.target) <= 0 or self.largest < self.smallest:
            raise UsageError(f"{self} must have values above 0, and largest >= smallest")


class Prediction(NamedTuple):
    """State of differential quantization between two groups.

    Attributes:
        latents: quantized latents of the last group, ``b h w d`` fp32.
        scale: step size, ``b h w 1`` fp32.
    """

    latents: Tensor
    scale: Tensor


class DifferentialCoding:
    """Predictions and step sizes around a codebook of differences. Computes in fp32.

    Args:
        config: the prediction and the step sizes.
    """

    def __init__(self, config: DifferentialConfig) -> None:
        self.config = config

    def start(self, latents: Tensor) -> Prediction:
        """Return the state after the first group, whose quantized latents are ``b h w d``."""
        return Prediction(latents.float(), torch.full_like(latents[..., :1], self.config.start, dtype=torch.float))

    def difference(self, latents: Tensor, past: Prediction) -> Tensor:
        """Return the difference of latents ``b h w d`` to their prediction, in steps."""
        # Empty slots of a batch of streams have a state of zeros.
        return (latents - self._predict(past)) / past.scale.clamp(min=self.config.smallest)

    def update(self, vectors: Tensor, past: Prediction) -> Prediction:
        """Return the state after a group with code vectors ``b h w d``; its latents are the decoded ones."""
        config = self.config
        # Square roots and quotients are rounded exactly, unlike logarithms: all devices and shapes agree.
        ratio = (vectors.square().mean(dim=-1, keepdim=True).sqrt() / config.target).sqrt()
        scale = (past.scale * ratio).clamp(config.smallest, config.largest)
        return Prediction(self._predict(past) + past.scale * vectors, scale)

    def encode(self, book: Quantizer, latents: Tensor, past: Prediction) -> tuple[Tensor, Prediction]:
        """Encode consecutive groups.

        Args:
            book: codebook of differences.
            latents: ``b d g h w``.
            past: state before the first of them.

        Returns:
            Codes ``b g h w`` int64, and the state after the last group.
        """
        codes = []
        for group in rearrange(latents.float(), "b d g h w -> g b h w d").unbind():
            found = book.encode(self.difference(group, past).flatten(0, 2)).view(group.shape[:3])
            codes.append(found)
            past = self.update(book.lookup(found), past)
        return torch.stack(codes, dim=1), past

    def decode(self, book: Quantizer, codes: Tensor, past: Prediction) -> tuple[Tensor, Prediction]:
        """Decode codes ``b g h w`` of consecutive groups to latents ``b g h w d``, and return the state after them."""
        latents = []
        # Group by group, like the encoder: a product of another shape is rounded differently, and errors would add up.
        for group in codes.unbind(dim=1):
            past = self.update(book.lookup(group), past)
            latents.append(past.latents)
        return torch.stack(latents, dim=1), past

    def train_pass(self, book: Any, latents: Tensor, past: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize groups ``b d g h w`` with gradients, and update the codebook once with all of them.

        Predictions and step sizes are constants for the gradient. Losses of the codebook count in units of latents, not
        of steps: static places, whose steps are small, would dominate them otherwise.

        Args:
            book: codebook of differences.
            latents: ``b d g h w``.
            past: state before the first group.

        Returns:
            Quantized latents ``b d g h w``, codes ``b g h w`` and the loss, a scalar.
        """
        z = rearrange(latents.float(), "b d g h w -> g b h w d")
        if hasattr(book, "begin_pass") and not torch.compiler.is_compiling():
            book.begin_pass()
        passes = book.training and any(
            part.passes_through for part in book.modules() if isinstance(part, VectorQuantizer)
        )
        pasts = []
        with torch.no_grad():
            for group in z.detach().unbind():
                pasts.append(past)
                vectors = self.difference(group, past)
                if not passes:
                    vectors = book.lookup(book.encode(vectors.flatten(0, 2))).view(group.shape)
                past = self.update(vectors, past)
        known = Prediction(*(torch.stack(tensors) for tensors in zip(*pasts, strict=True)))
        steps = scale_gradient(self.difference(z, known), known.scale.square())
        run = book.run_pass if hasattr(book, "run_pass") else book
        vectors, codes, loss = run(steps.flatten(0, 3))
        moved = scale_gradient(known.scale * vectors.view(z.shape), known.scale.square().reciprocal())
        quantized = rearrange(self._predict(known) + moved, "g b h w d -> b d g h w").to(latents.dtype)
        return quantized, rearrange(codes.view(z.shape[:4]), "g b h w -> b g h w"), loss

    def _predict(self, past: Prediction) -> Tensor:
        weight = (1 - (past.scale / self.config.reach).square()).clamp(min=0)
        return weight * past.latents


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """Return ``x`` up to rounding, with its gradient multiplied by ``factor``."""
    scaled = x * factor
    return scaled + (x - scaled).detach()
