"""Vector quantization with a codebook that follows its latents, by moving averages or by gradients.

van den Oord et al. 2017, "Neural Discrete Representation Learning", eq. 3 and appendix A.1; the rotation trick is of
Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.model.quantize.collectives import all_reduce_sum, broadcast_from_first
from vidvq.model.quantize.search import kmeans, nearest

# Of any codebook: the statistics of use count every code, and tokens are stored in at most 32 bits.
MAX_SIZE = 1 << 24
# What training alone needs of a quantizer, by the last part of its name.
TRAINING_STATE = ("ema_count", "ema_sum", "step", "reservoir")
_EPSILON = 1e-5
_REVIVE_EVERY = 10


@dataclass(frozen=True)
class VQConfig:
    """One codebook.

    Attributes:
        kind: ``vq``: vector quantization, codes learned by moving averages or gradients.
        size: number of codes.
        decay: decay of the moving averages, per step.
        cosine: compare directions only; latents and codes are normalized to length 1.
        warmup: training steps during which latents pass unquantized, before k-means initializes the codes.
        revive_below: fraction of uniform use below which a code is dead, and is replaced by a latent of the batch.
        update: what moves the codes: moving averages of their latents, or the gradient of the codebook loss.
        codebook: weight of the codebook loss relative to the commitment's (1 / beta), for ``update=gradient``.
        rotation: rotate and scale the gradient as the code is rotated and scaled relative to its latent, instead of
            passing it straight through.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

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
        if not 2 <= self.size <= MAX_SIZE:
            raise UsageError(f"size={self.size} must be from 2 to {MAX_SIZE}")
        if self.warmup < 0 or self.codebook < 0 or not 0 <= self.decay < 1 or not 0 <= self.revive_below < 1:
            raise UsageError(f"{self} must have warmup and codebook >= 0, and decay and revive_below in [0, 1)")


class VectorQuantizer(nn.Module):
    """``n d`` latents to codes. Buffers and arithmetic are fp32 whatever the network's precision.

    All training state is in buffers; across processes counts and sums are added up before they are averaged, so every
    process holds the same codebook as one process with the joint batch would.

    With ``update=gradient`` a code is ``codebook + offset``: the buffer is where k-means or a revival put it, the
    parameter how far gradients moved it since the start. So a placement never writes to a parameter, of which an
    optimizer may hold another copy (ZeRO, bf16), and a parameter in bf16 does not round the codes themselves.
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

    @property
    def warming(self) -> bool:
        """Whether the next step of training still passes latents unquantized."""
        return self.training and int(self.step) < self.config.warmup

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize, with a gradient to the latents as if it were not; in training mode also move the codebook.

        Args:
            latents: ``n d``, any float type.

        Returns:
            quantized ``n d`` in the latents' type, codes ``n``, and the commitment loss (a scalar, without weight),
            with ``update=gradient`` plus ``codebook`` x the codebook loss.
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = self._prepare(latents)
            # In the warm-up too the parameter has a gradient, of 0: not every optimizer takes one that has none.
            loss = x.new_zeros(()) if self.offset is None else self.offset.float().sum() * 0
            codes = nearest(x.detach(), self._vectors())
            if self.training and len(x) and self._learn(x.detach(), codes):
                return latents, codes, loss
            quantized = self._vectors()[codes]
            if len(x):
                loss = loss + F.mse_loss(x, quantized.detach())
                if self.offset is not None:
                    loss = loss + self.config.codebook * F.mse_loss(quantized, x.detach())
            return pass_gradient(x, quantized, self.config.rotation).to(latents.dtype), codes, loss

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """``n d`` -> codes ``n`` int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return nearest(self._prepare(latents), self._vectors())

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> their vectors, fp32, with a last axis ``d``."""
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
    def _learn(self, x: Tensor, codes: Tensor) -> bool:
        """Take a batch into the codebook; True while the warm-up lasts."""
        step = int(self.step)
        self.step += 1
        if step < self.config.warmup:
            self._fill_reservoir(x, step)
            if step + 1 == self.config.warmup:
                self._init_kmeans()
            return True
        counts = torch.zeros_like(self.ema_count).index_add_(0, codes, torch.ones(len(x), device=x.device))
        all_reduce_sum(counts)
        self.ema_count.lerp_(counts, 1 - self.config.decay)
        if self.offset is None:
            sums = torch.zeros_like(self.ema_sum).index_add_(0, codes, x)
            all_reduce_sum(sums)
            self.ema_sum.lerp_(sums, 1 - self.config.decay)
            self._ema_update()
        if step % _REVIVE_EVERY == 0:
            self._replace_dead_codes(x)
        return False

    def _ema_update(self) -> None:
        total = self.ema_count.sum()
        smoothed = (self.ema_count + _EPSILON) / (total + self.size * _EPSILON) * total
        centres = self.ema_sum / smoothed[:, None]
        self.codebook.copy_(F.normalize(centres) if self.config.cosine else centres)

    def _replace_dead_codes(self, x: Tensor) -> None:
        even = self.ema_count.mean()
        dead = self.ema_count < self.config.revive_below * even
        if not dead.any():
            return
        chosen = x[torch.randint(len(x), (int(dead.sum()),), device=x.device)]
        broadcast_from_first(chosen)
        self.codebook[dead] = chosen if self.offset is None else chosen - self.offset[dead].float()
        self.ema_count[dead] = even
        self.ema_sum[dead] = chosen * even

    def _fill_reservoir(self, x: Tensor, step: int) -> None:
        """Fill the reservoir evenly over the warm-up, so that k-means sees the latents' late state as well."""
        first, last = (at * len(self.reservoir) // self.config.warmup for at in (step, step + 1))
        rows = torch.arange(first, last, device=x.device)
        chosen = x[torch.randint(len(x), (len(rows),), device=x.device)]
        self.reservoir[rows] = chosen

    def _init_kmeans(self) -> None:
        # The network moved while the reservoir filled: its later half is what latents look like now.
        latents = self.reservoir[len(self.reservoir) // 2 :].clone()
        broadcast_from_first(latents)
        centres = kmeans(latents, self.size, seed=0)
        placed = F.normalize(centres) if self.config.cosine else centres
        self.codebook.copy_(placed if self.offset is None else placed - self.offset.float())
        counts = torch.bincount(nearest(latents, placed), minlength=self.size).float()
        self.ema_count.copy_(counts.clamp(min=0.1) * (1.0 / counts.mean()))
        self.ema_sum.copy_(placed * self.ema_count[:, None])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VectorQuantizer":
        # A move to another device is followed, a change of precision is not: bf16 codebooks lose codes.
        buffers, self._buffers = self._buffers, {}
        super()._apply(fn, recurse)
        self._buffers = {
            name: buffer if buffer is None else buffer.to(fn(buffer[:0] if buffer.ndim else buffer).device)
            for name, buffer in buffers.items()
        }
        return self


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The value of ``quantized``, to the bit, with the gradient going to ``x`` unchanged (Bengio et al. 2013)."""
    return quantized.detach() + (x - x.detach())


def pass_gradient(x: Tensor, quantized: Tensor, rotation: bool) -> Tensor:
    """The value of ``quantized`` ``n d``, to the bit, with its gradient going to ``x`` ``n d``.

    Straight through, or by the rotation trick: ``q = (|q| / |x|) R x`` with R the rotation from x to q in their plane,
    ``R = I - 2 w w' + 2 q^ x^'`` for the unit vectors ``x^``, ``q^`` and ``w = (x^ + q^) / |x^ + q^|`` (section 4.2);
    the scale and R count as constants, so that the angle between the gradient and q becomes that at x.
    """
    if not rotation:
        return straight_through(x, quantized)
    source, target = F.normalize(x.detach(), dim=-1), F.normalize(quantized.detach(), dim=-1)
    middle = F.normalize(source + target, dim=-1)
    turned = x - 2 * middle * (x * middle).sum(dim=-1, keepdim=True) + 2 * target * (x * source).sum(-1, keepdim=True)
    scale = quantized.detach().norm(dim=-1, keepdim=True) / x.detach().norm(dim=-1, keepdim=True).clamp(min=_EPSILON)
    return straight_through(turned * scale, quantized)
