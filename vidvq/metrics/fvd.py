"""Fréchet video distance between originals and other clips."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from vidvq.errors import UsageError
from vidvq.metrics.frechet import FeatureMoments, frechet_distance
from vidvq.metrics.i3d import FEATURES, load_i3d


class FvdScorer:
    """Collects I3D features of all consecutive windows of frames; the remainder of a clip is not used.

    Args:
        backbone: file with the weights of I3D.
        frames: length of a window (frames).
        lengths: lengths of the originals (frames).
        device: device of I3D.

    Raises:
        UsageError: the weights cannot be read, or the originals have fewer than two windows.
    """

    def __init__(self, backbone: str, frames: int, lengths: Iterable[int], device: str) -> None:
        self._frames, self._device = frames, device
        windows = sum(length // frames for length in lengths)
        if windows < 2:
            raise UsageError(
                f"fvd_frames={frames}: FVD needs 2 or more windows of this length; the clips have {windows}"
            )
        self._network = load_i3d(Path(backbone)).to(device)
        self._originals = FeatureMoments(FEATURES)
        self._others: dict[str, FeatureMoments] = {}

    @property
    def windows(self) -> int:
        """Number of windows of the originals."""
        return self._originals.count

    def add(self, original: np.ndarray) -> None:
        """Add an original ``t h w c`` uint8."""
        self._add(self._originals, original)

    def add_other(self, name: str, frames: np.ndarray) -> None:
        """Add a clip ``t h w c`` uint8 of the set with this name."""
        self._add(self._others.setdefault(name, FeatureMoments(FEATURES)), frames)

    def distances(self) -> dict[str, float]:
        """Return the distance of each set of two or more windows from the originals, by name."""
        return {
            name: frechet_distance(self._originals, found) for name, found in self._others.items() if found.count > 1
        }

    def _add(self, moments: FeatureMoments, frames: np.ndarray) -> None:
        for start in range(0, len(frames) - self._frames + 1, self._frames):
            window = torch.from_numpy(frames[start : start + self._frames]).to(self._device).movedim(-1, 0)[None]
            moments.add(self._network.features(window.float() / 127.5 - 1).cpu().numpy())
