"""A masked-reconstruction objective: the encoder is shown a part of a clip, and all of it is to come back."""

import torch
from torch import Tensor


def hide_blocks(video: Tensor, share: float, size: tuple[int, int, int]) -> Tensor:
    """Set random space-time blocks to gray.

    Args:
        video: ``b c t h w`` in [-1, 1]; the first frame is a block row of its own along time.
        share: of the blocks that are hidden in each clip, rounded to a whole number of them.
        size: of a block along time, height and width, in frames and pixels; the last ones may be cut short.
    """
    b, _, t, h, w = video.shape
    rows = (1 + -(-(t - 1) // size[0]), -(-h // size[1]), -(-w // size[2]))
    blocks = rows[0] * rows[1] * rows[2]
    order = torch.rand(b, blocks, device=video.device).argsort(dim=1)
    shown = (order >= round(share * blocks)).view(b, *rows).to(video.dtype)
    first = shown[:, :1]
    later = shown[:, 1:].repeat_interleave(size[0], dim=1)[:, : t - 1]
    frames = torch.cat([first, later], dim=1)
    pixels = frames.repeat_interleave(size[1], dim=2)[:, :, :h].repeat_interleave(size[2], dim=3)[..., :w]
    return video * pixels[:, None]
