"""The one place where frames become tensors and tensors frames."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vidvq.errors import UsageError

PREPROCESSING: dict[str, Any] = {"color": "rgb", "range": [-1.0, 1.0]}
"""What is done to pixels before the encoder; part of the token fingerprint."""


def to_video(frames: Any) -> Tensor:
    """Frames to a video tensor.

    Args:
        frames: uint8 RGB, ``t h w c`` or ``b t h w c``; a tensor or a numpy array.

    Returns:
        float32 in [-1, 1], ``b c t h w``.
    """
    pixels = torch.as_tensor(frames)
    if pixels.dtype != torch.uint8 or pixels.ndim not in (4, 5) or pixels.shape[-1] != 3:
        raise UsageError(f"frames are {pixels.dtype} {tuple(pixels.shape)}; they must be uint8, [b] t h w 3")
    batch = pixels if pixels.ndim == 5 else pixels[None]
    # One new tensor: three of a video's size cost more in memory that is mapped anew than in arithmetic.
    return rearrange(batch, "b t h w c -> b c t h w").float().div_(127.5).sub_(1)


def to_frames(video: Tensor) -> Any:
    """A video tensor ``1 c t h w`` in [-1, 1] to a numpy array of frames, ``t h w c`` uint8."""
    if video.ndim != 5 or video.shape[0] != 1:
        raise UsageError(f"video is {tuple(video.shape)}; it must be 1 c t h w")
    pixels = video[0].float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "c t h w -> t h w c").contiguous().cpu().numpy()
