"""Forward passes for training on a GPU, with fewer copies and casts; the modules and their weights are unchanged."""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.model.kernels import HAS_TRITON
from vidvq.model.layers import TAPS, ResBlock, TemporalCache, TemporalConv
from vidvq.model.tokenizer import VideoTokenizer


def use_training_layers(tokenizer: VideoTokenizer) -> None:
    """Replace the forward passes of norms, temporal convolutions and residual blocks, for complete videos.

    Outputs and gradients are the same up to rounding; cached frames of streams are not updated.
    """
    for module in tokenizer.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = partial(_normalize, module)  # type: ignore[method-assign]
        elif isinstance(module, TemporalConv) and not module.looks_ahead:
            module.forward = partial(_convolve_over_time, module)  # type: ignore[method-assign]
        elif isinstance(module, ResBlock):
            module.forward = partial(_add_residual, module)  # type: ignore[method-assign]


def _normalize(norm: nn.LayerNorm, x: Tensor, bias: Tensor | None = None, activated: bool = False) -> Tensor:
    # A compiler generates such kernels itself.
    if HAS_TRITON and x.is_cuda and not torch.compiler.is_compiling():
        from vidvq.model.kernels.norm import FusedNorm

        return FusedNorm.apply(x, bias, norm.weight, norm.bias, norm.eps, activated)  # type: ignore[return-value]
    x = x if bias is None else x + bias.to(x.dtype)
    # Autocast would cast the input to fp32, and the next layer the output back. Statistics are fp32 in any case.
    with torch.autocast(x.device.type, enabled=False):
        y = F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
    # Not in place as in the block: torch would copy the input, which the backward pass needs.
    return F.silu(y) if activated else y


def _convolve_over_time(layer: TemporalConv, x: Tensor, cache: TemporalCache) -> Tensor:
    # The gradient of a split is one concatenation; that of slices would be a sum of padded copies.
    first, rest = x.split([1, x.shape[1] - 1], dim=1)
    return layer.convolve(torch.cat([first.expand(-1, TAPS, -1, -1, -1), rest], dim=1))


def _add_residual(block: ResBlock, x: Tensor, cache: TemporalCache) -> Tensor:
    # The next norm adds the bias of the convolution, for which cuDNN would need another pass.
    hidden, space = rearrange(block.norm_space(x, activated=True), "b t h w c -> (b t) c h w"), block.space
    hidden = F.conv2d(hidden, space.weight, padding=space.padding)
    hidden = block.norm_time(rearrange(hidden, "(b t) c h w -> b t h w c", t=x.shape[1]), space.bias, activated=True)
    return block.time(hidden, cache) + x
