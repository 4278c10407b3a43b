"""Block of the video transformer: attention over a latent grid with rotary positions. Imports torch and einops."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.generate.network.head_norm import HeadNorm
from vidvq.generate.network.text_attention import TextAttention, TextContext

# Wavelengths of the rotary positions range from 2 pi to about 2 pi times this number (latents).
_ROTARY_BASE = 100.0
# More blocks than any generator needs: building a damaged number of them would not end.
_MAX_DEPTH = 1024
_MAX_MLP = 256


@dataclass(frozen=True)
class TransformerConfig:
    """Size and attention of the transformer.

    Attributes:
        width: length of a hidden vector; an even multiple of ``heads``, at least 6 per head.
        depth: number of blocks (1 to 1024).
        heads: number of attention heads (1 or more).
        mlp: width of the feed-forward layers as a multiple of ``width`` (above 0, at most 256).
        attention: ``full`` attends to the whole grid; ``axial`` alternates between attention in space and in time.
        dropout: dropout probability of the output of each attention and feed-forward layer (0 to below 1).
        copy_radius: radius of the window of the previous latent frame that each position has as an input and can copy
            codes from (latents, 0 or more); None for no window.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp: float = 2.5
    attention: Literal["full", "axial"] = "full"
    dropout: float = 0.0
    copy_radius: int | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads or self.width // self.heads % 2:
            raise UsageError(
                f"width={self.width} depth={self.depth} heads={self.heads}: all must be 1 or more, and width must be "
                "heads times an even number"
            )
        if self.depth > _MAX_DEPTH:
            raise UsageError(f"depth={self.depth} must be at most {_MAX_DEPTH}")
        if self.width // self.heads < 6:
            raise UsageError(f"width={self.width} must be at least 6 per head, two for each axis; heads={self.heads}")
        if not 0 < self.mlp <= _MAX_MLP or not 0 <= self.dropout < 1:
            raise UsageError(
                f"mlp={self.mlp} must be above 0 and at most {_MAX_MLP}, dropout={self.dropout} from 0 to below 1"
            )
        if self.copy_radius is not None and self.copy_radius < 0:
            raise UsageError(f"copy_radius={self.copy_radius} must be 0 or more, or null for no window")


@dataclass
class KVCache:
    """Keys and values of the complete latent frames of one batch.

    Attributes:
        frames: number of latent frames in the cache.
        keys: keys ``b a t h w d`` by block (``a`` heads).
        values: values of the same shape by block.
    """

    frames: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class Rotary(nn.Module):
    """Rotary position embeddings (Su et al. 2021); time, height and width rotate a third of the pairs of a head each.

    Args:
        size: length of the vectors of a head (even, 6 or more).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        pairs = size // 2
        self._pairs = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)

    def forward(self, times: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines ``t h w d/2`` of the positions of a grid."""
        axes = (times, torch.arange(h, device=times.device), torch.arange(w, device=times.device))
        angles = []
        for axis, (positions, pairs) in enumerate(zip(axes, self._pairs, strict=True)):
            frequencies = _ROTARY_BASE ** (-torch.arange(pairs, device=times.device) / max(pairs, 1))
            shape = [1, 1, 1, pairs]
            shape[axis] = len(positions)
            angles.append((positions[:, None] * frequencies).reshape(shape).expand(len(times), h, w, pairs))
        whole = torch.cat(angles, dim=-1)
        return whole.cos(), whole.sin()


# Cosines and sines ``t h w d/2`` of the rotary angles.
Rotation = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Pre-norm block of attention and a SwiGLU layer (Shazeer 2020).

    Args:
        index: index of the block; with ``axial``, even blocks attend in space and odd ones in time.
        text: whether the block also attends to a text.
    """

    def __init__(self, config: TransformerConfig, index: int, text: bool = False) -> None:
        super().__init__()
        self.text = TextAttention(config.width, config.heads, config.depth) if text else None
        width, hidden = config.width, max(round(config.width * config.mlp), 1)
        self.index, self.count = index, config.heads
        self.scope = "full" if config.attention == "full" else ("time" if index % 2 else "space")
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        # Normalized queries and keys bound the attention logits (Dehghani et al. 2023).
        self.query_norm, self.key_norm = HeadNorm(width // config.heads), HeadNorm(width // config.heads)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for last in (self.out, self.down):
            nn.init.normal_(last.weight, std=0.02 / (2 * config.depth) ** 0.5)

    def forward(self, x: Tensor, rotation: Rotation, text: TextContext | None = None) -> Tensor:
        """Map ``b s t h w c`` (``s`` streams) to the same shape."""
        x = self._read_text(x, text)
        b, s, t, h, w, _ = x.shape
        query, key, value = self._project(x, rotation)
        if self.scope == "space":
            shape, mask = "b a s t h w d -> (b s t) a (h w) d", None
        elif self.scope == "time":
            shape, mask = "b a s t h w d -> (b h w) a (s t) d", _stream_mask(s, t, 1, x.device)
        else:
            shape, mask = "b a s t h w d -> b a (s t h w) d", _stream_mask(s, t, h * w, x.device)
        out = F.scaled_dot_product_attention(*(rearrange(part, shape) for part in (query, key, value)), attn_mask=mask)
        left, right = shape.split(" -> ")
        out = rearrange(out, f"{right} -> {left}", b=b, s=s, t=t, h=h, w=w)
        return self._finish(x, out)

    def forward_cached(
        self, x: Tensor, rotation: Rotation, cache: KVCache, append: bool, text: TextContext | None = None
    ) -> Tensor:
        """Map frames ``b t h w c`` that follow those in a cache to the same shape."""
        x = self._read_text(x, text)
        b, t, h, w, _ = x.shape
        query, key, value = (part[:, :, 0] for part in self._project(x[:, None], rotation))
        if cache.frames:
            key = torch.cat([cache.keys[self.index], key], dim=2)
            value = torch.cat([cache.values[self.index], value], dim=2)
        if append:
            cache.keys[self.index], cache.values[self.index] = key, value
        if self.scope == "space":
            shape, mask = "b a t h w d -> (b t) a (h w) d", None
            key, value = key[:, :, -t:], value[:, :, -t:]
        elif self.scope == "time":
            shape, mask = "b a t h w d -> (b h w) a t d", _causal_mask(t, key.shape[2], 1, x.device)
        else:
            shape, mask = "b a t h w d -> b a (t h w) d", _causal_mask(t, key.shape[2], h * w, x.device)
        out = F.scaled_dot_product_attention(*(rearrange(part, shape) for part in (query, key, value)), attn_mask=mask)
        left, right = shape.split(" -> ")
        out = rearrange(out, f"{right} -> {left}", b=b, t=t, h=h, w=w)
        return self._finish(x[:, None], out[:, :, None])[:, 0]

    def _read_text(self, x: Tensor, text: TextContext | None) -> Tensor:
        return x if self.text is None or text is None else self.text(x, text)

    def _project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        parts = rearrange(self.qkv(self.before(x)), "b s t h w (n a d) -> n b a s t h w d", n=3, a=self.count)
        query, key, value = parts.unbind(0)
        return _rotate(self.query_norm(query), rotation), _rotate(self.key_norm(key), rotation), value

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.out(rearrange(attended, "b a s t h w d -> b s t h w (a d)")))
        gate, up = self.gate(self.between(x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(F.silu(gate) * up))


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs of vectors ``... t h w d`` by the angles of their positions."""
    cosine, sine = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


def _stream_mask(streams: int, t: int, area: int, device: torch.device) -> Tensor | None:
    """Return the attention mask (query, key) over positions ``s t h w``; None attends to all.

    The rules are in :mod:`vidvq.generate.network.transformer`.
    """
    if streams == 1:
        return None
    time = torch.arange(t, device=device)
    causal, earlier, same = (time[:, None] >= time, time[:, None] > time, time[:, None] == time)
    mask = torch.cat([torch.cat([causal, torch.zeros_like(causal)], 1), torch.cat([earlier, same], 1)])
    return mask.repeat_interleave(area, 0).repeat_interleave(area, 1)


def _causal_mask(t: int, total: int, area: int, device: torch.device) -> Tensor | None:
    """Return the causal attention mask (query, key) of the last ``t`` of ``total`` latent frames; None for one."""
    if t == 1:
        return None
    mask = torch.arange(total - t, total, device=device)[:, None] >= torch.arange(total, device=device)
    return mask.repeat_interleave(area, 0).repeat_interleave(area, 1)
