"""Vector quantization with codes learned by moving averages or by gradients.

van den Oord et al. 2017, "Neural Discrete Representation Learning", eq. 3 and appendix A.1; the rotation trick is from
Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.quantize.collectives import all_reduce_sum, broadcast_from_first
from vidvq.model.quantize.interface import Quantizer
from vidvq.model.quantize.search import kmeans, nearest_codes

# Usage statistics count each code, and tokens are stored in at most 32 bits.
MAX_CODEBOOK_SIZE = 1 << 24
# Last name component of the tensors that only training needs.
TRAINING_STATE = ("ema_count", "ema_sum", "step", "reservoir")
_EPSILON = 1e-5
_REVIVE_EVERY = 10


@dataclass(frozen=True)
class VQConfig:
    """A codebook for vector quantization.

    Attributes:
        kind: ``vq``: vector quantization, codes learned from data.
        size: number of codes (2 to 16777216).
        decay: decay of the moving averages per micro-batch (from 0, below 1).
        cosine: compare directions only, with latents and codes normalized to the unit sphere.
        warmup: training passes in which latents pass unquantized, before k-means initializes the codes (micro-batches:
            steps, unless a step has several).
        revive_below: usage below which a dead code is replaced by a latent of the batch, as a fraction of uniform usage
            (from 0, below 1).
        update: update rule of the codes: ``ema`` (moving averages of their latents) or ``gradient`` (gradient of the
            codebook loss).
        codebook: weight of the codebook loss relative to the commitment loss (1 / beta in the paper), for
            ``update=gradient`` (0 or more).
        rotation: use the rotation trick: rotate and scale the gradient from the code to its latent instead of passing
            it straight through.
    """

    kind: Literal["vq"] = "vq"
    size: int = 1024
    decay: float = 0.99
    cosine: bool = False
    warmup: int = 100
    revive_below: float = 0.03
    update: Literal["ema", "gradient"] = "ema"
    codebook: float = 4.0
    rotation: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MAX_CODEBOOK_SIZE:
            raise UsageError(f"size={self.size} must be from 2 to {MAX_CODEBOOK_SIZE}")
        if self.warmup < 0 or self.codebook < 0 or not 0 <= self.decay < 1 or not 0 <= self.revive_below < 1:
            raise UsageError(f"{self} must have warmup and codebook >= 0, and decay and revive_below in [0, 1)")


class VectorQuantizer(Quantizer):
    """Vector quantizer; see :class:`~vidvq.model.quantize.interface.Quantizer`. Its training state is in buffers.

    Counts and sums are reduced over all ranks before averaging, so every rank holds the codebook that a single process
    would have with the joint batch.

    With ``update=gradient`` a code is ``codebook + offset``: a buffer that k-means and code replacement write, plus a
    parameter that gradients update. Writing to a parameter is unsafe, because the optimizer may hold another copy
    (ZeRO, bf16), and a bf16 parameter would round the codes.

    Args:
        config: the codebook.
        dim: channels of a latent.
    """

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    step: Tensor
    reservoir: Tensor

    def __init__(self, config: VQConfig, dim: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        start = torch.randn(config.size, dim) / dim**0.5
        self.register_buffer("codebook", F.normalize(start) if config.cosine else start)
        self.offset = nn.Parameter(torch.zeros(config.size, dim)) if config.update == "gradient" else None
        self.register_buffer("ema_count", torch.ones(config.size))
        self.register_buffer("ema_sum", self.codebook.clone())
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("reservoir", torch.zeros(16 * config.size, dim))
        # The step on the host, and the version of the buffer that it was read from.
        self._host_step, self._step_version = 0, -1
        self._passes_through, self._revives = config.warmup > 0, True

    @property
    def warming_up(self) -> bool:
        """See :attr:`Quantizer.warming_up`."""
        return self.training and self._read_step() < self.config.warmup

    @property
    def passes_through(self) -> bool:
        """See :attr:`Quantizer.passes_through`."""
        return self.training and self._passes_through

    @torch.no_grad()
    def skip_warmup(self) -> None:
        """See :meth:`Quantizer.skip_warmup`."""
        self.step.fill_(self.config.warmup)
        self.ema_count.fill_(1)
        self.ema_sum.copy_(self.codebook)

    def begin_pass(self) -> None:
        """See :meth:`Quantizer.begin_pass`. The device is read only after the step was loaded or restored."""
        if not self.training:
            return
        step = self._read_step()
        self._passes_through, self._revives = step < self.config.warmup, step % _REVIVE_EVERY == 0
        self.step += 1
        self._host_step, self._step_version = step + 1, self.step._version

    def _read_step(self) -> int:
        if self.step._version != self._step_version:
            self._host_step, self._step_version = int(self.step), self.step._version
        return self._host_step

    def run_pass(
        self, latents: Tensor, used: Tensor | None = None, codes: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.run_pass`. Only passes of the warm-up read the device.

        Args:
            latents: ``n d``, any float type.
            used: mask of the latents that contribute to the loss and the update, ``n`` bool; None for all. All latents
                contribute to the warm-up.
            codes: nearest code of each used latent, ``n`` int64, if known; None searches.

        Returns:
            Quantized latents ``n d`` of the same type, codes ``n``, and the unweighted commitment loss (a scalar); with
            ``update=gradient``, ``codebook`` x the codebook loss is added.
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = self._prepare(latents)
            # A zero gradient during the warm-up: some optimizers reject parameters without one.
            loss = x.new_zeros(()) if self.offset is None else self.offset.float().sum() * 0
            if codes is None:
                codes = nearest_codes(x.detach(), self._vectors())
            if self.training and len(x) and self._update_codebook(x.detach(), codes, used):
                return latents, codes, loss
            quantized = self._vectors()[codes]
            # After the look-up: a latent that still takes a dead code is not near the one that replaces it.
            if self.training and len(x) and (torch.compiler.is_compiling() or self._revives):
                self._replace_dead_codes(x.detach(), used)
            if len(x):
                loss = loss + _mean_square(x - quantized.detach(), used)
                if self.offset is not None:
                    loss = loss + self.config.codebook * _mean_square(quantized - x.detach(), used)
            return estimate_gradient(x, quantized, self.config.rotation).to(latents.dtype), codes, loss

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Map latents ``n d`` to codes ``n`` int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return nearest_codes(self._prepare(latents), self._vectors())

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes of any shape ``...`` to their vectors ``... d`` fp32."""
        return self._vectors()[codes]

    def _vectors(self) -> Tensor:
        if self.offset is None:
            return self.codebook
        moved = self.codebook + self.offset.float()
        return F.normalize(moved, dim=-1) if self.config.cosine else moved

    def _prepare(self, latents: Tensor) -> Tensor:
        x = latents.float()
        return F.normalize(x, dim=-1) if self.config.cosine else x

    @torch.no_grad()
    def _update_codebook(self, x: Tensor, codes: Tensor, used: Tensor | None) -> bool:
        """Update the codebook with a batch; returns True during the warm-up, after which it never reads the device."""
        if self.passes_through:
            step = self._host_step - 1
            self._fill_reservoir(x, step)
            if step + 1 == self.config.warmup:
                self._init_kmeans()
            return True
        weights = torch.ones(len(x), device=x.device) if used is None else used.float()
        counts = torch.zeros_like(self.ema_count).index_add_(0, codes, weights)
        all_reduce_sum(counts)
        share = 1 - self.config.decay
        if used is not None:
            # Without latents, averages would sink below epsilon, which then moves the codes.
            share = share * (counts.sum() > 0)
        self.ema_count.lerp_(counts, share)
        if self.offset is None:
            sums = torch.zeros_like(self.ema_sum).index_add_(0, codes, x if used is None else x * weights[:, None])
            all_reduce_sum(sums)
            self.ema_sum.lerp_(sums, share)
            self._ema_update()
        return False

    def _ema_update(self) -> None:
        total = self.ema_count.sum()
        smoothed = (self.ema_count + _EPSILON) / (total + self.size * _EPSILON) * total
        centres = self.ema_sum / smoothed[:, None]
        self.codebook.copy_(F.normalize(centres) if self.config.cosine else centres)

    @torch.no_grad()
    def _replace_dead_codes(self, x: Tensor, used: Tensor | None) -> None:
        even = self.ema_count.mean()
        dead = self.ema_count < self.config.revive_below * even
        if torch.compiler.is_compiling():
            # On the device: a branch would compile both cases. `begin_pass` has counted this step already.
            dead &= (self.step - 1) % _REVIVE_EVERY == 0
        # A latent for every code, because the number of dead ones would have to be read from the device.
        chosen = x[_draw(len(x), self.size, used, x.device)]
        broadcast_from_first(chosen)
        codes = chosen if self.offset is None else chosen - self.offset.float()
        self.codebook.copy_(torch.where(dead[:, None], codes, self.codebook))
        self.ema_sum.copy_(torch.where(dead[:, None], chosen * even, self.ema_sum))
        self.ema_count.copy_(torch.where(dead, even, self.ema_count))

    def _fill_reservoir(self, x: Tensor, step: int) -> None:
        """Fill the reservoir evenly over the warm-up, so that k-means sees recent latents."""
        first, last = (at * len(self.reservoir) // self.config.warmup for at in (step, step + 1))
        rows = torch.arange(first, last, device=x.device)
        chosen = x[torch.randint(len(x), (len(rows),), device=x.device)]
        self.reservoir[rows] = chosen

    def _init_kmeans(self) -> None:
        # The network changed during the warm-up: use the more recent half.
        latents = self.reservoir[len(self.reservoir) // 2 :]
        centres = kmeans(latents, self.size, seed=0)
        codes = F.normalize(centres) if self.config.cosine else centres
        counts = torch.bincount(nearest_codes(latents, codes), minlength=self.size).float()
        # The results, not the latents: GPUs sum in no fixed order, so that each rank would find other centres.
        broadcast_from_first(codes)
        broadcast_from_first(counts)
        self.codebook.copy_(codes if self.offset is None else codes - self.offset.float())
        self.ema_count.copy_(counts.clamp(min=0.1) * (1.0 / counts.mean()))
        self.ema_sum.copy_(codes * self.ema_count[:, None])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VectorQuantizer":
        self._step_version = -1
        super()._apply(fn, recurse)
        return self


def _mean_square(error: Tensor, used: Tensor | None) -> Tensor:
    square = error.square()
    return square.mean() if used is None else (square * used[:, None]).mean()


def _draw(latents: int, number: int, used: Tensor | None, device: torch.device) -> Tensor:
    """Draw indices of used latents, with replacement; of all latents if none is used."""
    if used is None:
        return torch.randint(latents, (number,), device=device)
    ends, uniform = used.cumsum(0), torch.rand(number, device=device)
    drawn = torch.searchsorted(ends, (uniform * ends[-1]).long(), right=True)
    # Products with numbers below 1 may be rounded up to the number of latents.
    return torch.where(ends[-1] > 0, drawn, (uniform * latents).long()).clamp(max=latents - 1)


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """Return exactly ``quantized``, with the gradient passed to ``x`` unchanged (Bengio et al. 2013)."""
    return quantized.detach() + (x - x.detach())


def estimate_gradient(x: Tensor, quantized: Tensor, rotation: bool) -> Tensor:
    """Return exactly ``quantized``, with an estimated gradient to ``x``.

    The estimator is straight-through, or the rotation trick: ``q = (|q| / |x|) R x`` with R the rotation from x to q in
    their plane, ``R = I - 2 w w' + 2 q^ x^'`` for the unit vectors ``x^``, ``q^`` and ``w = (x^ + q^) / |x^ + q^|``
    (section 4.2). Scale and R are constants, so the gradient keeps its angle to q when it is applied at x.

    Args:
        x: latents ``n d``.
        quantized: their codes ``n d``.
        rotation: use the rotation trick.

    Returns:
        Quantized latents ``n d``.
    """
    if not rotation:
        return straight_through(x, quantized)
    source, target = F.normalize(x.detach(), dim=-1), F.normalize(quantized.detach(), dim=-1)
    middle = F.normalize(source + target, dim=-1)
    turned = x - 2 * middle * (x * middle).sum(dim=-1, keepdim=True) + 2 * target * (x * source).sum(-1, keepdim=True)
    scale = quantized.detach().norm(dim=-1, keepdim=True) / x.detach().norm(dim=-1, keepdim=True).clamp(min=_EPSILON)
    return straight_through(turned * scale, quantized)
