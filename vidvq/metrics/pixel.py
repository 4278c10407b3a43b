"""Pixel metrics of two videos of the same shape, ``t h w c`` uint8.

Each raises UsageError for arrays of another type, of different shapes, or without pixels.
"""

from itertools import pairwise

import numpy as np

from vidvq.errors import UsageError

_MAX_PSNR_DB = 100.0
# Values that are compared at once.
_PART = 1 << 22
# BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def psnr(original: np.ndarray, other: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio (dB, peak 255) over all pixels; at most 100, for identical videos."""
    _check_pair(original, other)
    # In parts, as in all metrics: a clip of large frames in a wider type takes many times its memory. The sum is exact.
    step = max(_PART // max(original[0].size, 1), 1)
    parts = ((original[at : at + step], other[at : at + step]) for at in range(0, len(original), step))
    error = sum(int(np.square(a.astype(np.int32) - b).sum(dtype=np.int64)) for a, b in parts) / original.size
    return min(10 * float(np.log10(255**2 / error)), _MAX_PSNR_DB) if error else _MAX_PSNR_DB


def frame_psnr(original: np.ndarray, other: np.ndarray) -> list[float]:
    """Compute the PSNR of each frame (dB)."""
    _check_pair(original, other)
    return [psnr(a[None], b[None]) for a, b in zip(original, other, strict=True)]


def masked_psnr(original: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float | None:
    """Compute the PSNR (dB) over the positions of a mask ``h w`` in all frames; None if the mask is empty."""
    return psnr(original[:, mask], other[:, mask]) if mask.any() else None


def ssim(original: np.ndarray, other: np.ndarray) -> float:
    """Compute the mean structural similarity of frames and channels (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    return float(np.mean(np.asarray(frame_ssim(original, other))))


def frame_ssim(original: np.ndarray, other: np.ndarray, gaussian: bool = True) -> list[float]:
    """Compute the structural similarity of each frame; see :func:`ssim`.

    Args:
        original: frames ``t h w c`` uint8.
        other: frames of the same shape.
        gaussian: whether the window is Gaussian with sigma 1.5; False for 7x7 pixels of equal weight and the sample
            covariance.

    Raises:
        UsageError: frames are smaller than the window.
    """
    _check_pair(original, other)
    side = 11 if gaussian else 7
    height, width = original.shape[1:3]
    if min(height, width) < side:
        raise UsageError(
            f"frames of {width}x{height} pixels are smaller than the {side}x{side} window of SSIM; use larger clips"
        )
    # Imported here, because PSNR does not need scikit-image.
    from skimage.metrics import structural_similarity

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    scores = [
        structural_similarity(a, b, channel_axis=-1, data_range=255, **window)
        for a, b in zip(original, other, strict=True)
    ]
    return np.asarray(scores).tolist()


def flicker(original: np.ndarray, other: np.ndarray) -> float:
    """Compute the root mean square error of the differences between consecutive frames (levels, 0 to 510).

    A constant error of all frames counts as 0; 0 for a single frame.
    """
    _check_pair(original, other)
    if len(original) < 2:
        return 0.0
    errors = (a.astype(np.int32) - b for a, b in zip(original, other, strict=True))
    total = sum(int(np.square(after - before).sum(dtype=np.int64)) for before, after in pairwise(errors))
    return float(np.sqrt(total / original[1:].size))


def blocking(original: np.ndarray, other: np.ndarray, side: int = 8) -> float:
    """Compute how much more than in the original the steps at the borders of blocks stand out from those within blocks.

    Args:
        original: frames ``t h w c`` uint8.
        other: frames of the same shape.
        side: height and width of a block (pixels).

    Returns:
        Quotient of the :func:`edge_ratio` of the frames and that of the original; 1 without a mosaic.
    """
    _check_pair(original, other)
    return edge_ratio(other, side) / edge_ratio(original, side)


def edge_ratio(frames: np.ndarray, side: int) -> float:
    """Divide the mean absolute step from pixel to pixel across borders of blocks by that within blocks.

    Args:
        frames: ``t h w c`` uint8.
        side: height and width of a block (pixels).

    Returns:
        Ratio, above 0. Steps count as at least 1/256 of a level, so that flat frames have a ratio of 1.
    """
    totals, counts = np.zeros(2), np.zeros(2)
    for frame in frames:
        for axis in (0, 1):
            steps = np.abs(np.diff(frame.astype(np.int16), axis=axis))
            at_border = np.arange(1, frame.shape[axis]) % side == 0
            for kind, chosen in enumerate((at_border, ~at_border)):
                part = steps.compress(chosen, axis)
                totals[kind] += part.sum(dtype=np.int64)
                counts[kind] += part.size
    borders, within = totals / np.maximum(counts, 1) + 1 / 256
    return float(borders / within) if counts[0] else 1.0


def _check_pair(original: np.ndarray, other: np.ndarray) -> None:
    # NumPy would compare other shapes by repeating frames, and 8-bit levels with floats in [0, 1].
    kinds = [(str(array.dtype), array.shape) for array in (original, other)]
    if kinds[0] != kinds[1] or original.dtype != np.uint8 or not original.size:
        one, two = (f"{kind} {shape}" for kind, shape in kinds)
        raise UsageError(f"the videos are {one} and {two}; they must be uint8 of one shape, t h w c, and not empty")


def static_mask(video: np.ndarray, deviation: float) -> np.ndarray:
    """Mark the static positions of a video.

    Args:
        video: frames ``t h w c`` uint8.
        deviation: largest standard deviation over time of the luma of a static position (levels, 0 to 255).

    Returns:
        Mask ``h w``; True marks static positions.
    """
    luma = np.stack([frame.astype(np.float32) @ _LUMA for frame in video])
    return luma.std(axis=0) <= deviation


def mean_frame(video: np.ndarray) -> np.ndarray:
    """Repeat the mean frame of a clip, the best reconstruction without motion; a baseline."""
    frame = np.rint(video.mean(axis=0)).astype(np.uint8)
    return np.broadcast_to(frame, video.shape)
