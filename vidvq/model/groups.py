"""Frame 0 of a video as a group of copies, so that all groups of a video have the same shape."""

import torch
from einops import repeat
from torch import Tensor


def replicate_first_frame(video: Tensor, frames: int) -> Tensor:
    """Map a video ``b c t h w`` to complete groups ``b c (g r) h w``.

    Args:
        video: frame 0, and any number of complete groups.
        frames: frames per group.
    """
    first = repeat(video[:, :, :1], "b c 1 h w -> b c r h w", r=frames)
    return torch.cat([first, video[:, :, 1:]], dim=2)


def merge_first_group(groups: Tensor, frames: int) -> Tensor:
    """Map complete groups ``b c (g r) h w`` to a video ``b c t h w`` whose frame 0 is the mean of the first group.

    Args:
        groups: complete groups from the start of a video.
        frames: frames per group.
    """
    first = groups[:, :, :frames].mean(dim=2, keepdim=True)
    return torch.cat([first, groups[:, :, frames:]], dim=2) if groups.shape[2] > frames else first
