"""Originals beside reconstructions, as videos and stills for HTML pages."""

import io
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from vidvq.video.encode import encode_mp4

_GAP_PIXELS = 8
DIFFERENCE_GAIN = 4
_LINE_PIXELS = 4
_GREY = 128
_SHOWN_SHORT_SIDE = 256
# Largest height and width that x264 encodes (pixels).
_MAX_SIDE = 16384
# Qualities of x264, best first; the first whose file is small enough is used, else the last.
_VIDEO_CRFS = (18, 23, 28)
_VIDEO_BYTES = 350_000


def side_by_side(
    videos: Sequence[np.ndarray], pts: tuple[int, ...], seconds_per_tick: Fraction
) -> tuple[bytes, tuple[int, int]]:
    """Encode videos next to each other in one H.264 video.

    Small videos are enlarged at least twice, so that the halved chroma resolution of yuv420p loses no detail. Large
    ones are not, because players and memory have limits; an odd row or column is left out. Those that x264 could not
    encode next to each other are reduced.

    Args:
        videos: frames ``t h w c`` uint8 of each, all of one shape.
        pts: time of each frame (ticks).
        seconds_per_tick: duration of a tick (seconds).

    Returns:
        The mp4, and its width and height (pixels).
    """
    largest = _MAX_SIDE // len(videos) - _GAP_PIXELS
    first, *others = (_resize(video, largest) for video in videos)
    gap = np.full((*first.shape[:2], _GAP_PIXELS, 3), _GREY, dtype=np.uint8)
    frames = np.concatenate([first, *(part for other in others for part in (gap, other))], axis=2)
    media = b""
    for crf in _VIDEO_CRFS:
        media = encode_mp4(frames, pts, seconds_per_tick, crf)
        if len(media) <= _VIDEO_BYTES:
            break
    return media, (frames.shape[2], frames.shape[1])


def still_frames(num_frames: int) -> list[int]:
    """Indices of the first, middle and last frame; fewer if the clip is shorter."""
    return sorted({0, num_frames // 2, num_frames - 1})


def still_sheet(original: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Combine the frames of :func:`still_frames` (columns) of an original and its reconstructions (rows).

    Below each reconstruction is its absolute difference from the original, times ``DIFFERENCE_GAIN``.

    Args:
        original: frames ``t h w c`` uint8.
        others: reconstructions of the same shape.

    Returns:
        Pixels ``h w c`` uint8.
    """
    shown = still_frames(len(original))
    before = original[shown]
    rows = [before]
    for other in others:
        after = other[shown]
        difference = np.abs(before.astype(np.int16) - after.astype(np.int16)) * DIFFERENCE_GAIN
        rows += [after, difference.clip(0, 255).astype(np.uint8)]
    return stack_rows(rows)


def stack_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Arrange frames ``n h w c`` uint8 of each row in a grid ``h w c`` with grey lines between them."""
    sheets = [_row(frames) for frames in rows]
    line = np.full((_LINE_PIXELS, sheets[0].shape[1], 3), _GREY, dtype=np.uint8)
    parts = [part for sheet in sheets for part in (line, sheet)]
    return np.concatenate(parts[1:])


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encode pixels ``h w c`` uint8 as JPEG without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def _resize(frames: np.ndarray, largest: int) -> np.ndarray:
    """Resize frames ``t h w c`` for display, to an even height and width of at most ``largest`` pixels."""
    height, width = frames.shape[1:3]
    shorter = min(height, width)
    times = 1 if shorter >= 2 * _SHOWN_SHORT_SIDE else max(2, round(_SHOWN_SHORT_SIDE / shorter))
    times = min(times, largest / max(height, width))
    if times == 1:
        return frames[:, : height // 2 * 2, : width // 2 * 2]
    size = (max(round(width * times / 2), 1) * 2, max(round(height * times / 2), 1) * 2)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])


def _row(frames: np.ndarray) -> np.ndarray:
    line = np.full((frames.shape[1], _LINE_PIXELS, 3), _GREY, dtype=np.uint8)
    parts = [part for frame in frames for part in (line, frame)]
    return np.concatenate(parts[1:], axis=1)
