"""Size and orientation of output frames."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import atan2, ceil, degrees, floor
from typing import Literal

import numpy as np

from vidvq.video.container import VideoError

Fit = Literal["crop", "pad", "stretch"]
# Default limit of upscaling (pixels), because a narrow strip of video could otherwise take gigabytes.
MAX_SIDE = 8192


@dataclass(frozen=True)
class FrameSize:
    """Size of output frames: scale, then crop or pad around the centre.

    Attributes:
        scaled_height, scaled_width: size to scale to (pixels).
        height, width: final size (pixels).
    """

    scaled_height: int
    scaled_width: int
    height: int
    width: int

    def crop_or_pad(self, frames: np.ndarray) -> np.ndarray:
        """Crop or pad scaled frames ``t h w c`` to the final size; padding is black."""
        top, left = (self.scaled_height - self.height) // 2, (self.scaled_width - self.width) // 2
        inside = frames[:, max(top, 0) : max(top, 0) + self.height, max(left, 0) : max(left, 0) + self.width]
        if inside.shape[1:3] == (self.height, self.width):
            return inside
        framed = np.zeros((len(frames), self.height, self.width, 3), dtype=np.uint8)
        top, left = (self.height - inside.shape[1]) // 2, (self.width - inside.shape[2]) // 2
        framed[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
        return framed


def fit_size(
    height: Fraction | int,
    width: Fraction | int,
    short_side: int | None,
    multiple: int,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    max_side: int = MAX_SIDE,
) -> FrameSize:
    """Compute the size of output frames.

    Args:
        height, width: displayed size of the source (square pixels).
        short_side: length to scale the short side to (pixels); None keeps it. Ignored if ``size`` is set.
        multiple: number that height and width must be multiples of (pixels).
        size: fixed ``(height, width)`` (pixels); None keeps the aspect ratio, up to ``multiple``.
        fit: ``crop`` around the centre, ``pad`` with black, or ``stretch`` to another aspect ratio.
        max_side: maximum length to scale a side up to, before it is cropped (pixels).

    Raises:
        VideoError: ``too_small`` if a side is shorter than ``multiple``; ``too_large`` if a side would be scaled up to
            more than ``max_side``.
    """
    if size:
        return _fit_fixed(height, width, size, fit, max_side)
    return _fit_short_side(height, width, short_side, multiple, fit, max_side)


def _fit_fixed(
    height: Fraction | int, width: Fraction | int, size: tuple[int, int], fit: Fit, max_side: int
) -> FrameSize:
    if fit == "stretch":
        return FrameSize(*size, *size)
    scales = Fraction(size[0]) / height, Fraction(size[1]) / width
    scale = max(scales) if fit == "crop" else min(scales)
    scaled = max(round(height * scale), 1), max(round(width * scale), 1)
    if scale > 1 and max(scaled) > max(size):
        _refuse_long(height, width, scaled, f"size={list(size)}", max_side)
    return FrameSize(*scaled, *size)


def _fit_short_side(
    height: Fraction | int, width: Fraction | int, short_side: int | None, multiple: int, fit: Fit, max_side: int
) -> FrameSize:
    scale = Fraction(short_side) / min(height, width) if short_side else Fraction(1)
    scaled = max(round(height * scale), 1), max(round(width * scale), 1)
    if scale > 1:
        _refuse_long(height, width, scaled, f"short_side={short_side}", max_side)
    counts: dict[Fit, Callable[[Fraction], int]] = {"crop": floor, "pad": ceil, "stretch": round}
    target_height, target_width = (counts[fit](Fraction(side, multiple)) * multiple for side in scaled)
    if 0 in (target_height, target_width):
        raise VideoError("too_small", f"is {round(width)}x{round(height)} pixels; a side must be at least {multiple}")
    if fit == "stretch":
        scaled = target_height, target_width
    return FrameSize(*scaled, target_height, target_width)


def _refuse_long(
    height: Fraction | int, width: Fraction | int, scaled: tuple[int, int], setting: str, max_side: int
) -> None:
    if max(scaled) > max_side:
        raise VideoError(
            "too_large",
            f"is {round(width)}x{round(height)} pixels, {scaled[1]}x{scaled[0]} at {setting}; "
            f"the cap is limits.max_side={max_side}",
        )


def orientation(matrix: "tuple[int, ...] | None") -> tuple[int, bool]:
    """Orientation of a picture with a display matrix, to the nearest quarter turn.

    Args:
        matrix: ``a b u c d v x y w`` in row-major order, 16.16 fixed point; a pixel at ``(x, y)`` is shown at
            ``(ax + cy, bx + dy)``. None for no matrix.

    Returns:
        ``(quarter_turns, mirrored)``: counter-clockwise turns, then a horizontal flip.
    """
    if matrix is None:
        return 0, False
    a, b, c, d = (matrix[index] / 65536 for index in (0, 1, 3, 4))
    mirrored = a * d - b * c < 0
    if mirrored:
        # Undo the flip, which is applied last, to leave the rotation.
        a, c = -a, -c
    angle = degrees(atan2(c - b, a + d))
    return round(angle / 90) % 4, mirrored
