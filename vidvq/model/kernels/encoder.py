"""The forward pass of the encoder with Triton kernels."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.model.encoder import Encoder
from vidvq.model.kernels.pointwise import pointwise
from vidvq.model.kernels.spatial import spatial
from vidvq.model.kernels.temporal import temporal
from vidvq.model.layers import Downsample, ResBlock, TemporalCache


@torch.no_grad()
def encode(encoder: Encoder, video: Tensor, cache: TemporalCache) -> Tensor:
    """Encode complete groups, as :meth:`Encoder.forward` does up to rounding; without gradients.

    Args:
        encoder: the network.
        video: ``b c (g t) h w`` in [-1, 1].
        cache: past frames of each layer; updated in place.

    Returns:
        Latents ``b d g h w``.
    """
    patches = encoder.patch(video, lambda blocks, matrix: pointwise(blocks, matrix.T))
    x, active = spatial(patches, encoder.stem, *_following(encoder, 0))
    for index, stage in enumerate(encoder.stages, 1):
        if isinstance(stage, ResBlock):
            _, hidden = spatial(active, stage.space, stage.norm_time, keep=False)
            x, active = temporal(hidden, stage.time, cache, x, *_following(encoder, index))
        else:
            assert isinstance(stage, Downsample)
            merged = rearrange(x, "b (t m) h w c -> b t h w (m c)", m=stage.merge)
            x, active = spatial(merged, stage.conv, *_following(encoder, index))
    latents = pointwise(active, encoder.head.weight, encoder.head.bias)
    if encoder.blocks is not None and encoder.linear is not None:
        mapped = pointwise(encoder.blocks(video), encoder.linear.weight)
        latents = latents + F.pad(mapped, (latents.shape[-1] - mapped.shape[-1], 0))
    return rearrange(latents, "b t h w d -> b d t h w")


def _following(encoder: Encoder, index: int) -> tuple[nn.LayerNorm | None, bool]:
    """Return the norm that follows a layer (None for none), and whether the output before the norm is used as well.

    Args:
        encoder: the network.
        index: stage that follows the layer.
    """
    if index == len(encoder.stages):
        return encoder.norm, False
    stage = encoder.stages[index]
    return (stage.norm_space if isinstance(stage, ResBlock) else None), True
