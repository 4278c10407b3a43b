"""Trivial baselines for prediction, interpolation and filling."""

import numpy as np

# Width of the ring whose mean colour fills a box (pixels).
_RING = 8


def repeat_last(frames: np.ndarray, given: int) -> np.ndarray:
    """Predict frames ``t h w c`` uint8 by repeating the last of the ``given`` first ones."""
    return np.concatenate([frames[:given], np.repeat(frames[given - 1 : given], len(frames) - given, axis=0)])


def blend(frames: np.ndarray, kept: list[int]) -> np.ndarray:
    """Interpolate frames ``t h w c`` uint8 linearly in time between the nearest kept ones (indices, sorted)."""
    times = np.arange(len(frames))
    after = np.clip(np.searchsorted(kept, times), 1, len(kept) - 1)
    left, right = np.array(kept)[after - 1], np.array(kept)[after]
    weight = ((times - left) / (right - left))[:, None, None, None]
    return np.rint(frames[left] * (1 - weight) + frames[right] * weight).astype(np.uint8)


def surrounding_mean(frames: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fill the hidden pixels ``t h w`` of each frame with the mean colour of the visible pixels around them."""
    filled = frames.copy()
    for frame, pixels in zip(filled, hidden, strict=True):
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        ring = np.zeros_like(pixels)
        top, left = max(rows[0] - _RING, 0), max(columns[0] - _RING, 0)
        ring[top : rows[-1] + 1 + _RING, left : columns[-1] + 1 + _RING] = True
        ring &= ~pixels
        frame[pixels] = np.rint(frame[ring if ring.any() else ~pixels].mean(axis=0)).astype(np.uint8)
    return filled
