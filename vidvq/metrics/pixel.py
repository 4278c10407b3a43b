"""Pixel metrics of two videos of the same shape, ``t h w c`` uint8."""

import numpy as np

_MAX_PSNR_DB = 100.0


def psnr(original: np.ndarray, other: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio (dB, peak 255) over all pixels; at most 100, for identical videos."""
    error = float(np.mean(np.square(original.astype(np.float64) - other)))
    return min(10 * float(np.log10(255**2 / error)), _MAX_PSNR_DB) if error else _MAX_PSNR_DB


def ssim(original: np.ndarray, other: np.ndarray) -> float:
    """Compute the mean structural similarity of frames and channels (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    # Imported here, because PSNR does not need scikit-image.
    from skimage.metrics import structural_similarity

    scores = [
        structural_similarity(
            a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(original, other, strict=True)
    ]
    return float(np.mean(np.asarray(scores)))


def mean_frame(video: np.ndarray) -> np.ndarray:
    """Repeat the mean frame of a clip, the best reconstruction without motion; a baseline."""
    frame = np.rint(video.mean(axis=0)).astype(np.uint8)
    return np.broadcast_to(frame, video.shape)
