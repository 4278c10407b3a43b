"""Activation checkpointing, put on the tokenizer from outside."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vidvq.model import VideoTokenizer
from vidvq.model.layers import Past, ResBlock


def checkpoint_activations(tokenizer: VideoTokenizer) -> None:
    """Make every residual block compute its inner activations again in the backward pass (Chen et al. 2016)."""
    for module in tokenizer.modules():
        if isinstance(module, ResBlock):
            module.forward = partial(_forward, module.forward)  # type: ignore[method-assign]


def _forward(forward: Callable[[Tensor, Past], Tensor], x: Tensor, past: Past) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, past)
    # Whole videos start their stream here, and nothing asks for the past that a block would collect.
    return checkpoint(lambda x: forward(x, Past()), x, use_reentrant=False)  # type: ignore[return-value]
