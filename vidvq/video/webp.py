"""Animated WebP, which FFmpeg does not read: decoded by Pillow and converted losslessly to FFV1 in Matroska."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vidvq.video.container import VideoError
from vidvq.video.encode import FFV1_KIND, encode_timed

_TICK = Fraction(1, 1000)
# Duration that browsers use for a frame without one (ms).
_DEFAULT_MS = 100
# Limit of the pixels of all frames, which are kept in memory.
_MAX_PIXELS = 1 << 29


def as_matroska(path: Path) -> io.BytesIO:
    """Convert an animation to a Matroska file in memory, with its frame times.

    Raises:
        VideoError: ``unreadable`` or ``too_large``.
    """
    buffer = io.BytesIO()
    try:
        with Image.open(path, formats=["WEBP"]) as image:
            count = getattr(image, "n_frames", 1)
            if count * image.width * image.height > _MAX_PIXELS:
                detail = f"is {image.width}x{image.height} with {count} frames; an animated WebP may have {_MAX_PIXELS}"
                raise VideoError("too_large", f"{detail} pixels in all")
            encode_timed(buffer, _frames(image, count), _TICK, FFV1_KIND, count)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, EOFError, ValueError, SyntaxError) as error:
        raise VideoError("unreadable", f"animated WebP cannot be read: {' '.join(str(error).split())}") from error
    buffer.seek(0)
    return buffer


def _frames(image: Image.Image, count: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    start = 0
    for index in range(count):
        image.seek(index)
        pixels = np.asarray(image.convert("RGB"))
        end = start + (int(image.info.get("duration", 0)) or _DEFAULT_MS)
        yield pixels, (start, end)
        start = end
