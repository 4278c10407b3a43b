"""Attention of video latents to the states of a text. Imports torch and einops."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.generate.network.head_norm import HeadNorm


class TextContext(NamedTuple):
    """Projected texts of a batch.

    Attributes:
        states: ``b n c``; the first is a learned vector that stands for no text.
        mask: ``b n`` bool, False for padding and for dropped texts.
    """

    states: Tensor
    mask: Tensor


class TextProjection(nn.Module):
    """Projects the states of texts to the width of the transformer.

    Args:
        text_width: length of a state of the text encoder.

    Attributes:
        width: ``text_width``.
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.width = text_width
        self.norm, self.project = nn.RMSNorm(text_width), nn.Linear(text_width, width)
        self.none = nn.Embedding(1, width)
        nn.init.normal_(self.none.weight, std=0.02)

    def forward(self, batch: int, states: Tensor | None, mask: Tensor | None, kept: Tensor | None) -> TextContext:
        """Project a batch of texts.

        Args:
            batch: number of samples.
            states: states of the text encoder, ``b n d``; None for no texts.
            mask: ``b n`` bool, False for padding; None for no texts.
            kept: ``b`` bool, False for samples whose text is dropped; None keeps all.
        """
        weight = self.project.weight
        if states is None or mask is None:
            # One masked state, so that every rank has a gradient for every weight.
            states = weight.new_zeros(batch, 1, self.width)
            mask = torch.zeros(batch, 1, dtype=torch.bool, device=weight.device)
        mask = mask if kept is None else mask & kept[:, None]
        none = self.none(torch.zeros(batch, 1, dtype=torch.int64, device=mask.device))
        projected = self.project(self.norm(states.to(none.dtype)))
        return TextContext(torch.cat([none, projected], dim=1), F.pad(mask, (1, 0), value=True))


class TextAttention(nn.Module):
    """Pre-norm cross-attention to a text, with a residual connection.

    Args:
        depth: number of blocks, which scales the initial weights of the output.
    """

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.count, self.before = heads, nn.RMSNorm(width)
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.query_norm, self.key_norm = HeadNorm(width // heads), HeadNorm(width // heads)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, x: Tensor, text: TextContext) -> Tensor:
        """Map ``b ... c`` to the same shape."""
        query = rearrange(self.query(self.before(x)).flatten(1, -2), "b m (a d) -> b a m d", a=self.count)
        key, value = rearrange(self.key_value(text.states), "b n (k a d) -> k b a n d", k=2, a=self.count)
        attended = F.scaled_dot_product_attention(
            self.query_norm(query), self.key_norm(key), value, attn_mask=text.mask[:, None, None]
        )
        return x + self.out(rearrange(attended, "b a m d -> b m (a d)")).view(x.shape)
