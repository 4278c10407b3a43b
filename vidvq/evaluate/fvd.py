"""Fréchet video distance between originals and their reconstructions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vidvq.errors import UsageError
from vidvq.evaluate.config import EvaluateConfig
from vidvq.formats.clip_shard import ClipInfo
from vidvq.metrics.frechet import FeatureMoments, frechet_distance
from vidvq.metrics.i3d import FEATURES, load_i3d
from vidvq.model.pixels import to_video


class FvdScorer:
    """Collects I3D features of all consecutive windows of frames, without the rest of a clip.

    Args:
        config: settings with ``fvd_backbone``.
        infos: clips that are scored.
        sources: number of tokenizers.

    Raises:
        UsageError: the weights cannot be read, or the clips have fewer than two windows.
    """

    def __init__(self, config: EvaluateConfig, infos: Mapping[str, ClipInfo], sources: int) -> None:
        assert config.fvd_backbone
        self._frames = config.fvd_frames
        windows = sum(info.num_frames // self._frames for info in infos.values())
        if windows < 2:
            raise UsageError(
                f"fvd_frames={self._frames}: FVD needs 2 or more windows of this length; the clips have {windows}"
            )
        self._network = load_i3d(Path(config.fvd_backbone))
        self._originals = FeatureMoments(FEATURES)
        self._decoded = [FeatureMoments(FEATURES) for _ in range(sources)]

    @property
    def windows(self) -> int:
        """Number of windows added."""
        return self._originals.count

    def add(self, original: np.ndarray, decoded: Sequence[np.ndarray]) -> None:
        """Add a clip ``t h w c`` uint8 and its reconstruction by each tokenizer."""
        for start in range(0, len(original) - self._frames + 1, self._frames):
            window = slice(start, start + self._frames)
            for moments, frames in zip((self._originals, *self._decoded), (original, *decoded), strict=True):
                moments.add(self._network.features(to_video(frames[window])).numpy())

    def distances(self) -> list[float]:
        """Return the distance of each tokenizer's reconstructions from the originals."""
        return [frechet_distance(self._originals, moments) for moments in self._decoded]
