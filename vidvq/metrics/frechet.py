"""Fréchet distance between two sets of features, each taken as a Gaussian.

Dowson and Landau 1982, "The Fréchet Distance between Multivariate Normal Distributions", eq. 4; for features of images,
Heusel et al. 2017; for videos (FVD), Unterthiner et al. 2018.
"""

import numpy as np

from vidvq.errors import UsageError


class FeatureMoments:
    """Sums of features and of their products, in float64.

    Args:
        dim: number of features of a sample.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._sum, self._products = np.zeros(dim), np.zeros((dim, dim))

    def add(self, features: np.ndarray) -> None:
        """Add samples ``n d``.

        Raises:
            UsageError: they are not ``n d``.
        """
        if features.shape[1:] != self._sum.shape:
            raise UsageError(f"features have shape {features.shape}; it must be n {len(self._sum)}")
        values = features.astype(np.float64)
        self.count += len(values)
        self._sum += values.sum(axis=0)
        self._products += values.T @ values

    @property
    def mean(self) -> np.ndarray:
        """Mean ``d``."""
        return self._sum / self.count

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance ``d d``."""
        mean = self.mean
        return (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(one: FeatureMoments, other: FeatureMoments) -> float:
    """Return ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` for means m and covariances C (0 or more).

    Raises:
        UsageError: a set has fewer than two samples, or other features than the other set.
    """
    if min(one.count, other.count) < 2:
        raise UsageError(
            f"a Fréchet distance needs at least 2 samples on both sides; there are {one.count} and {other.count}"
        )
    if one.mean.shape != other.mean.shape:
        raise UsageError(f"samples have {len(one.mean)} and {len(other.mean)} features; both sets must have the same")
    root = _square_root(one.covariance)
    # C1 C2 has the eigenvalues of the symmetric matrix R C2 R, with R the square root of C1.
    cross = np.linalg.eigvalsh(root @ other.covariance @ root)
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    distance = np.square(one.mean - other.mean).sum() + traces - 2 * np.sqrt(cross.clip(min=0)).sum()
    # Rounding makes the distance of equal sets slightly negative.
    return max(float(distance), 0.0)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
