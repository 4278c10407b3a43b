"""Distances between two videos of one shape, ``t h w c`` uint8."""

import numpy as np

_MAX_PSNR_DB = 100.0


def psnr(original: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of the clip, peak 255; at most 100 (equal)."""
    error = float(np.mean(np.square(original.astype(np.float64) - other)))
    return min(10 * float(np.log10(255**2 / error)), _MAX_PSNR_DB) if error else _MAX_PSNR_DB


def ssim(original: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), mean over frames and colours; at most 1."""
    # PSNR alone needs no scikit-image.
    from skimage.metrics import structural_similarity

    scores = [
        structural_similarity(
            a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(original, other, strict=True)
    ]
    return float(np.mean(np.asarray(scores)))


def mean_frame(video: np.ndarray) -> np.ndarray:
    """The clip that repeats its own mean frame: what a codec without motion could at best do."""
    frame = np.rint(video.mean(axis=0)).astype(np.uint8)
    return np.broadcast_to(frame, video.shape)
