"""Vector quantization with a codebook that follows its latents by moving averages.

van den Oord et al. 2017, "Neural Discrete Representation Learning", appendix A.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from vidvq.model.quantize.search import kmeans, nearest

_EPSILON = 1e-5
_REVIVE_EVERY = 10


@dataclass(frozen=True)
class VQConfig:
    """One codebook.

    Attributes:
        size: number of codes.
        decay: of the moving averages, per step.
        cosine: compare directions alone; latents and codes are put on the unit sphere.
        warmup: training steps in which latents pass unquantized, before k-means places the codes.
        revive_below: a code used less than this share of an even use is dead, and moves to a latent of the batch.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["vq"] = "vq"
    size: int = 1024
    decay: float = 0.99
    cosine: bool = False
    warmup: int = 100
    revive_below: float = 0.03

    def __post_init__(self) -> None:
        if self.size < 2 or self.warmup < 0 or not 0 <= self.decay < 1 or not 0 <= self.revive_below < 1:
            raise ValueError(f"{self} must have size >= 2, warmup >= 0, and decay and revive_below in [0, 1)")


class VectorQuantizer(nn.Module):
    """``n d`` latents to codes. Buffers and arithmetic are fp32 whatever the network's precision.

    All training state is in buffers; across processes counts and sums are added up before they are averaged, so every
    process holds the same codebook as one process with the joint batch would.
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
        self.register_buffer("ema_count", torch.ones(config.size))
        self.register_buffer("ema_sum", self.codebook.clone())
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("reservoir", torch.zeros(16 * config.size, dim))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize, with a straight-through gradient; in training mode also move the codebook.

        Args:
            latents: ``n d``, any float type.

        Returns:
            quantized ``n d`` in the latents' type, codes ``n``, and the commitment loss (a scalar, without weight).
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = self._prepare(latents)
            codes = nearest(x.detach(), self.codebook)
            if self.training and len(x):
                warming = self._learn(x.detach(), codes)
                if warming:
                    return latents, codes, x.new_zeros(())
            quantized = self.codebook[codes]
            loss = F.mse_loss(x, quantized) if len(x) else x.new_zeros(())
            return (x + (quantized - x).detach()).to(latents.dtype), codes, loss

    def encode(self, latents: Tensor) -> Tensor:
        """``n d`` -> codes ``n`` int64."""
        return nearest(self._prepare(latents), self.codebook)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> their vectors, fp32, with a last axis ``d``."""
        return self.codebook[codes]

    def _prepare(self, latents: Tensor) -> Tensor:
        x = latents.float()
        return F.normalize(x, dim=-1) if self.config.cosine else x

    @torch.no_grad()
    def _learn(self, x: Tensor, codes: Tensor) -> bool:
        """Take a batch into the codebook; True while the warm-up lasts."""
        step = int(self.step)
        self.step += 1
        if step < self.config.warmup:
            self._collect(x, step)
            if step + 1 == self.config.warmup:
                self._place()
            return True
        counts = torch.zeros_like(self.ema_count).index_add_(0, codes, torch.ones(len(x), device=x.device))
        sums = torch.zeros_like(self.ema_sum).index_add_(0, codes, x)
        _add_up(counts)
        _add_up(sums)
        self.ema_count.lerp_(counts, 1 - self.config.decay)
        self.ema_sum.lerp_(sums, 1 - self.config.decay)
        self._follow()
        if step % _REVIVE_EVERY == 0:
            self._revive(x)
        return False

    def _follow(self) -> None:
        total = self.ema_count.sum()
        smoothed = (self.ema_count + _EPSILON) / (total + self.size * _EPSILON) * total
        centres = self.ema_sum / smoothed[:, None]
        self.codebook.copy_(F.normalize(centres) if self.config.cosine else centres)

    def _revive(self, x: Tensor) -> None:
        even = self.ema_count.mean()
        dead = self.ema_count < self.config.revive_below * even
        if not dead.any():
            return
        chosen = x[torch.randint(len(x), (int(dead.sum()),), device=x.device)]
        _same_everywhere(chosen)
        self.codebook[dead] = chosen
        self.ema_count[dead] = even
        self.ema_sum[dead] = chosen * even

    def _collect(self, x: Tensor, step: int) -> None:
        """Fill the reservoir evenly over the warm-up, so that k-means sees the latents' late state as well."""
        share = -(-len(self.reservoir) // self.config.warmup)
        rows = torch.arange(step * share, min((step + 1) * share, len(self.reservoir)), device=x.device)
        chosen = x[torch.randint(len(x), (len(rows),), device=x.device)]
        self.reservoir[rows] = chosen

    def _place(self) -> None:
        # The network moved while the reservoir filled: its later half is what latents look like now.
        latents = self.reservoir[len(self.reservoir) // 2 :].clone()
        _same_everywhere(latents)
        centres = kmeans(latents, self.size, seed=0)
        self.codebook.copy_(F.normalize(centres) if self.config.cosine else centres)
        counts = torch.bincount(nearest(latents, self.codebook), minlength=self.size).float()
        self.ema_count.copy_(counts.clamp(min=0.1) * (1.0 / counts.mean()))
        self.ema_sum.copy_(self.codebook * self.ema_count[:, None])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VectorQuantizer":
        # A move to another device is followed, a change of precision is not: bf16 codebooks lose codes.
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer[:0] if buffer.ndim else buffer).device)
        return self


def _add_up(tensor: Tensor) -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)


def _same_everywhere(tensor: Tensor) -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(tensor, src=0)
