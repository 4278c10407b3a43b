"""Activation checkpointing, put on the tokenizer from outside."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vidvq.model import VideoTokenizer
from vidvq.model.layers import ResBlock, TemporalCache


def checkpoint_activations(tokenizer: VideoTokenizer) -> None:
    """Make every residual block compute its inner activations again in the backward pass (Chen et al. 2016)."""
    for module in tokenizer.modules():
        if isinstance(module, ResBlock):
            module.forward = partial(_forward, module.forward)  # type: ignore[method-assign]


def _forward(forward: Callable[[Tensor, TemporalCache], Tensor], x: Tensor, cache: TemporalCache) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, cache)
    # Whole videos start their stream here, and nothing reads the cache that a block would update.
    return checkpoint(lambda x: forward(x, TemporalCache()), x, use_reentrant=False)  # type: ignore[return-value]
