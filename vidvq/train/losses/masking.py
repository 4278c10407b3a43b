"""Masking for a masked-reconstruction objective: complete clips are reconstructed from masked input."""

from collections.abc import Sequence

import torch
from torch import Tensor


def mask_blocks(
    video: Tensor, share: float, size: tuple[int, int, int], generators: Sequence[torch.Generator]
) -> Tensor:
    """Set random space-time blocks to grey.

    Args:
        video: ``b c t h w`` in [-1, 1]. Frame 0 forms blocks on its own.
        share: fraction of blocks to mask in each clip, rounded to a whole number of blocks.
        size: duration (frames), height and width (pixels) of a block; border blocks may be smaller.
        generators: source of randomness of each clip, on the device of the video.

    Returns:
        Masked video ``b c t h w``.
    """
    b, _, t, h, w = video.shape
    rows = (1 + -(-(t - 1) // size[0]), -(-h // size[1]), -(-w // size[2]))
    blocks = rows[0] * rows[1] * rows[2]
    draws = [torch.rand(blocks, generator=each, device=video.device) for each in generators]
    order = torch.stack(draws).argsort(dim=1)
    kept = (order >= round(share * blocks)).view(b, *rows).to(video.dtype)
    first = kept[:, :1]
    later = kept[:, 1:].repeat_interleave(size[0], dim=1)[:, : t - 1]
    frames = torch.cat([first, later], dim=1)
    pixels = frames.repeat_interleave(size[1], dim=2)[:, :, :h].repeat_interleave(size[2], dim=3)[..., :w]
    return video * pixels[:, None]
