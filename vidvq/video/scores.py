"""Cheap scores of a clip, to leave out what teaches nothing: black pictures and pictures that stand still."""

import numpy as np

# Rec. 601 luma of R, G, B.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_GRID = 64


def luma_score(frames: np.ndarray) -> float:
    """Mean brightness of ``t h w c`` uint8 RGB frames: 0 is black, 1 is white."""
    return float(_small_luma(frames).mean())


def motion_score(frames: np.ndarray) -> float:
    """Mean change of a pixel's brightness from one frame to the next, 0 to 1; 0 for a single frame.

    About 0.002 for a talking head, 0.02 for a camera that pans; the noise of a camera alone stays below 0.001, since
    each pixel is a mean over some of the source's.
    """
    luma = _small_luma(frames)
    return float(np.abs(np.diff(luma, axis=0)).mean()) if len(luma) > 1 else 0.0


def _small_luma(frames: np.ndarray) -> np.ndarray:
    """Brightness ``t h w`` in 0 to 1, averaged over blocks to at most about ``_GRID`` pixels a side."""
    luma = frames.astype(np.float32) @ (_LUMA / 255)
    for axis in (1, 2):
        block = max(luma.shape[axis] // _GRID, 1)
        whole = luma.shape[axis] // block * block
        luma = np.add.reduceat(luma.take(range(whole), axis=axis), range(0, whole, block), axis=axis) / block
    return luma
