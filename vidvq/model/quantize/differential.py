"""Adaptive differential quantization over time: each group quantizes its difference to a prediction from past codes.

Cummiskey, Jayant and Flanagan 1973, "Adaptive Quantization in Differential PCM Coding of Speech", applied to the
latents of each position. Predictions and step sizes depend on past codes only, so the decoder repeats them. A static
scene is coded like a residual quantizer whose depth is time. Refresh codes replace latents that change suddenly, like
the intra-coded blocks of video codecs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.vq import VectorQuantizer, VQConfig


@dataclass(frozen=True)
class DifferentialConfig:
    """Adaptive differential quantization of the latent frames after the first.

    With the quantized latent y and the step size s of the last group, the temporal codebook quantizes
    ``(z - a y) / s`` with ``a = max(0, 1 - (s / reach) ** 2)``. For a code with vector q, the next step size is
    ``s * sqrt(rms(q) / target)``. With a refresh codebook, a position takes the code that leaves the smaller error,
    that of the difference or that of the latent itself; after the latter the step size is ``start``.

    Attributes:
        reach: step size from which nothing is predicted (above 0); about 1.4 x the RMS of latents.
        start: step size after the first group of a stream and after a refresh code (from ``smallest``).
        smallest: smallest step size (above 0).
        largest: largest step size (at least ``smallest``).
        target: RMS of the vector of a code at which the step size stays (above 0).
        refresh: codebook of latents, whose codes follow those of the temporal codebook; needs ``kind: vq`` for both,
            without ``cosine``. None codes differences only.
    """

    reach: float = 2.0
    start: float = 0.5
    smallest: float = 0.1
    largest: float = 2.0
    target: float = 1.0
    refresh: VQConfig | None = None

    def __post_init__(self) -> None:
        if min(self.reach, self.smallest, self.target) <= 0 or min(self.start, self.largest) < self.smallest:
            raise UsageError(f"{self} must have values above 0, and start and largest >= smallest")
        if self.refresh and self.refresh.cosine:
            raise UsageError("differential.refresh.cosine=True must be False: latents have lengths")


class Prediction(NamedTuple):
    """State of differential quantization between two groups.

    Attributes:
        latents: quantized latents of the last group, ``b h w d`` fp32.
        scale: step size, ``b h w 1`` fp32.
    """

    latents: Tensor
    scale: Tensor


class Books(NamedTuple):
    """Codebooks of the latent frames after the first.

    Attributes:
        differences: codebook of differences.
        refresh: codebook of latents.
    """

    differences: Quantizer
    refresh: VectorQuantizer | None

    @property
    def passes_through(self) -> bool:
        """Whether the current training pass passes latents unquantized."""
        return self.differences.passes_through or (self.refresh is not None and self.refresh.passes_through)

    def begin_pass(self) -> None:
        """See :meth:`Quantizer.begin_pass`."""
        self.differences.begin_pass()
        if self.refresh is not None:
            self.refresh.begin_pass()


class _Scan(NamedTuple):
    """Result of encoding the groups of a training pass in order, without gradients.

    Attributes:
        before: state before each group: latents ``g b h w d`` and step sizes ``g b h w 1``.
        refreshed: positions that take a refresh code, ``g b h w 1`` bool.
        codes: codes ``g b h w`` int64; None if the pass passes latents unquantized.
    """

    before: Prediction
    refreshed: Tensor
    codes: Tensor | None


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
        # Square roots and quotients are correctly rounded, unlike logarithms, so all devices and shapes agree.
        ratio = (vectors.square().mean(dim=-1, keepdim=True).sqrt() / config.target).sqrt()
        scale = (past.scale * ratio).clamp(config.smallest, config.largest)
        return Prediction(self._predict(past) + past.scale * vectors, scale)

    def encode(self, books: Books, latents: Tensor, past: Prediction) -> tuple[Tensor, Prediction]:
        """Encode consecutive groups.

        Args:
            books: the codebooks.
            latents: ``b d g h w``.
            past: state before the first of them.

        Returns:
            Codes ``b g h w`` int64, and the state after the last group.
        """
        codes = []
        for group in rearrange(latents.float(), "b d g h w -> g b h w d").unbind():
            found, past, _ = self._encode_group(books, group, past)
            codes.append(found)
        return torch.stack(codes, dim=1), past

    def decode(self, books: Books, codes: Tensor, past: Prediction) -> tuple[Tensor, Prediction]:
        """Decode codes ``b g h w`` of consecutive groups to latents ``b g h w d``, and return the state after them."""
        latents = []
        # Group by group, like the encoder: products of other shapes round differently, and errors would add up.
        for group in codes.unbind(dim=1):
            past = self._decode_group(books, group, past)
            latents.append(past.latents)
        return torch.stack(latents, dim=1), past

    def train_pass(self, books: Books, latents: Tensor, past: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize groups ``b d g h w`` with gradients, and update the codebooks once with all of them.

        Predictions, step sizes and the choice of a codebook are constants for the gradient. The gradient of the
        commitment loss is that of errors in units of latents, not of steps; otherwise static positions, whose steps are
        small, would dominate it. While a codebook warms up, its latents pass unquantized.

        Args:
            books: the codebooks.
            latents: ``b d g h w``.
            past: state before the first group.

        Returns:
            Quantized latents ``b d g h w``, codes ``b g h w`` and the loss, a scalar.
        """
        if not torch.compiler.is_compiling():
            books.begin_pass()
        z = rearrange(latents.float(), "b d g h w -> g b h w d")
        scan = self._scan(books, z.detach(), past)
        quantized, codes, loss = self._train_differences(books, z, scan)
        if books.refresh is not None:
            refresh_latents, refresh_codes, refresh_loss = self._train_refresh(books, z, scan)
            quantized = torch.where(scan.refreshed, refresh_latents, quantized)
            codes = torch.where(scan.refreshed[..., 0], books.differences.size + refresh_codes, codes)
            loss = loss + refresh_loss
        quantized = rearrange(quantized, "g b h w d -> b d g h w").to(latents.dtype)
        return quantized, rearrange(codes, "g b h w -> b g h w"), loss

    @torch.no_grad()
    def _scan(self, books: Books, z: Tensor, past: Prediction) -> _Scan:
        """Encode latents ``g b h w d`` group by group from the state before the first one."""
        pasts, refreshed, codes = [], [], []
        for group in z.unbind():
            pasts.append(past)
            if books.passes_through:
                past = self.update(self.difference(group, past), past)
                refreshed.append(torch.zeros_like(past.scale, dtype=torch.bool))
            else:
                group_codes, past, is_refreshed = self._encode_group(books, group, past)
                refreshed.append(is_refreshed)
                codes.append(group_codes)
        before = Prediction(*(torch.stack(tensors) for tensors in zip(*pasts, strict=True)))
        return _Scan(before, torch.stack(refreshed), torch.stack(codes) if codes else None)

    def _train_differences(self, books: Books, z: Tensor, scan: _Scan) -> tuple[Tensor, Tensor, Tensor]:
        """Train the codebook of differences; return quantized latents ``g b h w d``, codes ``g b h w`` and its loss."""
        book, before = books.differences, scan.before
        steps = scale_gradient(self.difference(z, before), before.scale.square()).flatten(0, 3)
        if isinstance(book, VectorQuantizer):
            # The scan has found the nearest codes; searching them again would double the cost.
            nearest = None if scan.codes is None else _split(scan.codes.flatten(), book.size)[0]
            used = None if books.refresh is None else ~scan.refreshed.flatten()
            vectors, codes, loss = book.run_pass(steps, used, nearest)
        else:
            vectors, codes, loss = book.run_pass(steps)
        moved = scale_gradient(before.scale * vectors.view(z.shape), before.scale.square().reciprocal())
        return self._predict(before) + moved, codes.view(z.shape[:4]), loss

    def _train_refresh(self, books: Books, z: Tensor, scan: _Scan) -> tuple[Tensor, Tensor, Tensor]:
        """Train the codebook of latents; return quantized latents ``g b h w d``, codes ``g b h w`` and its loss."""
        assert books.refresh is not None
        nearest = None if scan.codes is None else _split(scan.codes.flatten(), books.differences.size)[1]
        vectors, codes, loss = books.refresh.run_pass(z.flatten(0, 3), scan.refreshed.flatten(), nearest)
        return vectors.view(z.shape), codes.view(z.shape[:4]), loss

    def _encode_group(self, books: Books, latents: Tensor, past: Prediction) -> tuple[Tensor, Prediction, Tensor]:
        """Return the codes of latents ``b h w d``, the state after them, and a mask ``b h w 1`` of refresh codes."""
        book, refresh = books
        codes = book.encode(self.difference(latents, past).flatten(0, 2)).view(latents.shape[:3])
        after = self.update(book.lookup(codes), past)
        if refresh is None:
            return codes, after, torch.zeros_like(after.scale, dtype=torch.bool)
        refresh_codes = refresh.encode(latents.flatten(0, 2)).view(latents.shape[:3])
        restarted = self.start(refresh.lookup(refresh_codes))
        errors = [(latents - state.latents).square().sum(dim=-1, keepdim=True) for state in (restarted, after)]
        refreshed = errors[0] < errors[1]
        codes = torch.where(refreshed[..., 0], book.size + refresh_codes, codes)
        return codes, _select(refreshed, restarted, after), refreshed

    def _decode_group(self, books: Books, codes: Tensor, past: Prediction) -> Prediction:
        """Return the state after codes ``b h w``."""
        book, refresh = books
        if refresh is None:
            return self.update(book.lookup(codes), past)
        differences, refresh_codes = _split(codes, book.size)
        after, restarted = self.update(book.lookup(differences), past), self.start(refresh.lookup(refresh_codes))
        return _select((codes >= book.size)[..., None], restarted, after)

    def _predict(self, past: Prediction) -> Tensor:
        weight = (1 - (past.scale / self.config.reach).square()).clamp(min=0)
        return weight * past.latents


def _split(codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Split codes of two codebooks, the first with ``size`` codes. Each part has arbitrary codes for the other one."""
    return codes.clamp(max=size - 1), (codes - size).clamp(min=0)


def _select(chosen: Tensor, yes: Prediction, no: Prediction) -> Prediction:
    return Prediction(*(torch.where(chosen, *pair) for pair in zip(yes, no, strict=True)))


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """Return ``x`` up to rounding, with its gradient multiplied by ``factor``."""
    scaled = x * factor
    return scaled + (x - scaled).detach()
