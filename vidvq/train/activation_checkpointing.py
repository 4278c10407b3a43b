"""Activation checkpointing of the tokenizer, without changes to its modules."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vidvq.model import VideoTokenizer
from vidvq.model.layers import ResBlock, TemporalCache


def checkpoint_activations(tokenizer: VideoTokenizer) -> None:
    """Recompute the activations of all residual blocks in the backward pass (Chen et al. 2016)."""
    for module in tokenizer.modules():
        if isinstance(module, ResBlock):
            module.forward = partial(_forward, module.forward)  # type: ignore[method-assign]


def _forward(forward: Callable[[Tensor, TemporalCache], Tensor], x: Tensor, cache: TemporalCache) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, cache)
    # Training processes complete videos: the recomputed block starts from an empty cache, whose update is not used.
    return checkpoint(lambda x: forward(x, TemporalCache()), x, use_reentrant=False)  # type: ignore[return-value]
