"""Cheap scores to filter dark and static clips."""

import numpy as np

# Rec. 601 luma of R, G, B.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_GRID = 64


def luma_score(frames: np.ndarray) -> float:
    """Mean brightness of frames ``t h w c`` uint8 RGB, from 0 (black) to 1 (white)."""
    return float(_small_luma(frames).mean())


def motion_score(frames: np.ndarray) -> float:
    """Mean absolute change of brightness between consecutive frames, from 0 to 1; 0 for a single frame.

    About 0.002 for a talking head and 0.02 for a panning camera. Camera noise stays below 0.001, because pixels are
    averaged over blocks.
    """
    luma = _small_luma(frames)
    return float(np.abs(np.diff(luma, axis=0)).mean()) if len(luma) > 1 else 0.0


def _small_luma(frames: np.ndarray) -> np.ndarray:
    """Brightness ``t h w`` from 0 to 1, averaged over blocks so that a side has about ``_GRID`` pixels."""
    luma = frames.astype(np.float32) @ (_LUMA / 255)
    for axis in (1, 2):
        block = max(luma.shape[axis] // _GRID, 1)
        whole = luma.shape[axis] // block * block
        luma = np.add.reduceat(luma.take(range(whole), axis=axis), range(0, whole, block), axis=axis) / block
    return luma
