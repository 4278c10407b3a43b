"""Conversion between uint8 frames and video tensors."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vidvq.errors import UsageError

PREPROCESSING: dict[str, Any] = {"color": "rgb", "range": [-1.0, 1.0]}
"""Preprocessing of pixels before the encoder; part of the token fingerprint."""
# Largest absolute value of a pixel, with a margin for rounding.
MAX_PIXEL = 1.001


def check_dense(value: Any, name: str) -> None:
    """Refuse sparse tensors, for which torch implements few functions.

    Raises:
        UsageError: it is a sparse tensor; ``name`` names it in the message.
    """
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise UsageError(f"{name} is a tensor of layout {value.layout}; it must be dense: call to_dense() on it")


def unreversed(array: Any) -> Any:
    """Copy a NumPy array of negative strides, which reversed channels (BGR to RGB) have and torch does not take."""
    return array.copy() if any(stride < 0 for stride in getattr(array, "strides", ())) else array


def as_tensor(frames: Any) -> Tensor:
    """Return frames as a tensor; a view of their memory, unless an axis is reversed.

    Args:
        frames: a tensor or a NumPy array.

    Raises:
        UsageError: another type, or a sparse tensor.
    """
    check_dense(frames, "video")
    try:
        return torch.as_tensor(unreversed(frames))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"{type(frames).__name__}" + (f" of {frames.dtype}" if hasattr(frames, "dtype") else "")
        raise UsageError(f"frames are a {kind}; they must be a tensor or a NumPy array of uint8") from error


def to_video(frames: Any) -> Tensor:
    """Convert frames to a video tensor.

    Args:
        frames: RGB frames ``t h w c`` or ``b t h w c`` uint8; a tensor or a NumPy array.

    Returns:
        Video ``b c t h w`` float32 in [-1, 1].

    Raises:
        UsageError: wrong type, rank or number of channels.
    """
    return normalize(to_pixels(frames))


def to_pixels(frames: Any) -> Tensor:
    """Convert frames to a video tensor of bytes.

    Args:
        frames: RGB frames ``t h w c`` or ``b t h w c`` uint8; a tensor or a NumPy array.

    Returns:
        Video ``b c t h w`` uint8, a view.

    Raises:
        UsageError: wrong type, rank or number of channels.
    """
    pixels = as_tensor(frames)
    if pixels.dtype != torch.uint8 or pixels.ndim not in (4, 5) or pixels.shape[-1] != 3:
        raise UsageError(f"frames are {pixels.dtype} {tuple(pixels.shape)}; they must be uint8, [b] t h w 3")
    batch = pixels if pixels.ndim == 5 else pixels[None]
    return rearrange(batch, "b t h w c -> b c t h w")


def normalize(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels of any shape to float32 in [-1, 1]."""
    # In place: page faults of freshly mapped memory cost more than the arithmetic.
    return pixels.float().div_(127.5).sub_(1)


def to_frames(video: Tensor) -> Any:
    """Convert a video tensor to frames.

    Args:
        video: ``1 c t h w`` in [-1, 1]; values outside are clamped.

    Returns:
        NumPy array of RGB frames ``t h w c`` uint8.

    Raises:
        UsageError: wrong rank, or a batch size other than 1.
    """
    if video.ndim != 5 or video.shape[0] != 1:
        raise UsageError(f"video is {tuple(video.shape)}; it must be 1 c t h w")
    pixels = video[0].float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "c t h w -> t h w c").contiguous().cpu().numpy()
