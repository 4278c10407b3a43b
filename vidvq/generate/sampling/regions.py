"""Pixels that a request generates, and the frames and times of its result."""

import io
from dataclasses import replace
from fractions import Fraction

import numpy as np
from PIL import Image, UnidentifiedImageError

from vidvq.errors import UsageError
from vidvq.formats.npy import read_npy
from vidvq.formats.token_shard import TokenInfo
from vidvq.generate.blanking import hide_between, hide_box
from vidvq.generate.requests import FillConfig, InterpolateConfig
from vidvq.log import counted
from vidvq.storage import resolve_path

# Smallest value of a hidden pixel in a greyscale mask of 8 bits.
_HIDDEN = 128


def read_mask(path: str) -> np.ndarray:
    """Read the mask of the pixels to generate: a PNG for all frames, or an npy of shape ``h w`` or ``t h w``.

    Args:
        path: path or URL. Pixels of a PNG are hidden from half brightness, values of an npy unless 0.

    Returns:
        ``t h w`` or ``1 h w`` bool, True for hidden pixels.

    Raises:
        UsageError: the file is missing, unreadable, of another kind or shape, or an animation.
    """
    try:
        data = resolve_path(path).read_bytes()
        if path.endswith(".npy"):
            values = read_npy(data)
            if values.dtype.kind not in "biuf":
                raise UsageError(f"it holds {values.dtype}, not numbers")
            mask = values != 0
        else:
            mask = _read_png(data)
    # Pillow raises SyntaxError for damage.
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        fault = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"mask={path} cannot be read: {fault}; set it to a PNG or npy file") from error
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3:
        raise UsageError(f"mask={path} has shape {mask.shape}; it must be h w, or t h w")
    return mask


def _read_png(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UsageError("it is an animation; a mask that moves is an npy of shape t h w")
            if image.mode.startswith("I"):
                # Pillow would cut the 16 bits to 8 by clipping, not by scaling.
                return np.asarray(image) >= _HIDDEN << 8
            return np.asarray(image.convert("L")) >= _HIDDEN
    except UnidentifiedImageError:
        raise UsageError("it is not a PNG, or damaged") from None


def result_shape(config: InterpolateConfig | FillConfig, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return frames, height and width of the result for a clip of ``shape``, without making it."""
    t, h, w = shape
    if isinstance(config, InterpolateConfig):
        return (t - 1) * (config.insert or 0) + t, h, w
    if config.box is None or config.outside:
        return shape
    (_, _), (above, below), (before, after) = _margins(config.box, h, w)
    return t, above + h + below, before + w + after


def prepare(
    config: InterpolateConfig | FillConfig, frames: np.ndarray, info: TokenInfo, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, TokenInfo]:
    """Arrange the frames of a result: those given, and places for those to generate.

    Args:
        frames: frames ``t h w c`` uint8 of the clip.
        mask: :func:`read_mask` of the request; None for a box.

    Returns:
        Frames ``t h w c`` uint8 of the result, the mask ``t h w`` bool of the pixels to generate, and its metadata with
        the grid of the clip.

    Raises:
        UsageError: the request generates no pixel or all of them, or the mask has another size than the frames.
    """
    if isinstance(config, InterpolateConfig):
        return _interpolate(config, frames, info)
    frames, hidden = hide_region(config, frames, mask)
    return frames, hidden, replace(info, height=frames.shape[1], width=frames.shape[2])


def hide_region(
    config: FillConfig, frames: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames of a fill, which a box may enlarge, and the mask of the pixels to generate.

    Args:
        frames: frames ``t h w c`` of the clip.
        mask: :func:`read_mask` of the request; None for a box.

    Raises:
        UsageError: the request generates no pixel or all of them, or the mask has another size than the frames.
    """
    t, h, w = frames.shape[:3]
    if mask is not None:
        if mask.shape[1:] != (h, w) or len(mask) not in (1, t):
            size = f"{counted(len(mask), 'frames')} of {mask.shape[2]}x{mask.shape[1]}"
            raise UsageError(
                f"has {counted(t, 'frames')} of {w}x{h} pixels; mask={config.mask} has {size}, so use another mask"
            )
        hidden = np.broadcast_to(mask, (t, h, w)).copy()
        hidden = ~hidden if config.outside else hidden
    else:
        assert config.box
        frames, hidden = _box(config.box, config.outside, frames)
    if hidden.all() or not hidden.any():
        region = f"mask={config.mask}" if config.box is None else f"box={','.join(map(str, config.box))}"
        raise UsageError(f"has {w}x{h} pixels; {region} must cover some of them, not all")
    return frames, hidden


def _box(box: tuple[int, int, int, int], outside: bool, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hide a box; parts of it outside the frame enlarge the frame."""
    _, h, w, _ = frames.shape
    inside = hide_box(frames.shape[:3], box).numpy()
    if outside:
        return frames, ~inside
    margins = _margins(box, h, w)
    return np.pad(frames, (*margins, (0, 0))), np.pad(inside, margins, constant_values=True)


def _margins(box: tuple[int, int, int, int], h: int, w: int) -> tuple[tuple[int, int], ...]:
    """Return the frames, rows and columns before and after a clip that a box adds to it."""
    left, top, width, height = box
    return (0, 0), (max(-top, 0), max(top + height - h, 0)), (max(-left, 0), max(left + width - w, 0))


def _interpolate(
    config: InterpolateConfig, frames: np.ndarray, info: TokenInfo
) -> tuple[np.ndarray, np.ndarray, TokenInfo]:
    step = config.every or len(frames)
    if config.insert:
        step = config.insert + 1
        frames, info = np.repeat(frames, step, axis=0)[: (len(frames) - 1) * step + 1], _insert_times(info, step)
    hidden = hide_between(frames.shape[:3], step).numpy()
    if not hidden.any():
        raise UsageError(f"has {counted(len(frames), 'frames')}, none between the given ones; use longer clips")
    return frames, hidden, info


def _insert_times(info: TokenInfo, step: int) -> TokenInfo:
    """Divide the intervals between frames into ``step`` equal ones."""
    pts = [
        before * step + at * (after - before)
        for before, after in zip(info.pts, info.pts[1:], strict=False)
        for at in range(step)
    ]
    return replace(
        info,
        num_frames=(info.num_frames - 1) * step + 1,
        fps=info.fps * step,
        time_base=str(Fraction(info.time_base) / step),
        pts=(*pts, info.pts[-1] * step),
        duration=info.duration * step,
    )
