"""Fréchet distance between clips in the latent space of their tokenizer, which needs no other network.

It compares samples of generators over one tokenizer; distances of different tokenizers, and FVD, are on other scales.
"""

from collections.abc import Sequence

import numpy as np
import torch

from vidvq.metrics.frechet import FeatureMoments, frechet_distance
from vidvq.model import Tokenizer


class LatentDistance:
    """Fréchet distance of clips to reference clips.

    The features of a clip are its mean latent, and the mean absolute change of the latents from one latent frame to the
    next (0 for a clip of one).

    Args:
        reference: codes ``lt lh lw`` of the reference clips, two or more.

    Raises:
        UsageError: the tokenizer has no latents.
    """

    def __init__(self, tokenizer: Tokenizer, reference: Sequence[np.ndarray]) -> None:
        self._tokenizer = tokenizer
        self._reference = self._moments(reference)

    def measure(self, clips: Sequence[np.ndarray]) -> float:
        """Return the distance of clips ``lt lh lw`` (two or more) to the reference (0 or more)."""
        return frechet_distance(self._reference, self._moments(clips))

    def _moments(self, clips: Sequence[np.ndarray]) -> FeatureMoments:
        features = np.stack([self._features(codes) for codes in clips])
        moments = FeatureMoments(features.shape[1])
        moments.add(features)
        return moments

    def _features(self, codes: np.ndarray) -> np.ndarray:
        grid = torch.from_numpy(codes.astype(np.int64))[None].to(self._tokenizer.device)
        latents = self._tokenizer.latents(grid)[0].float()
        means, changes = latents.mean(dim=(1, 2, 3)), latents.diff(dim=1).abs()
        changed = changes.mean(dim=(1, 2, 3)) if changes.numel() else torch.zeros_like(means)
        return torch.cat([means, changed]).cpu().numpy()
