"""In-flight quality: some samples are decoded back while the frames they came from are still in memory."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from vidvq.formats.summary import SCORE_SUFFIX, SCORE_UNIT
from vidvq.metrics.perceptual import load_perceptual
from vidvq.metrics.pixel import psnr
from vidvq.model import Tokenizer, iter_decode
from vidvq.model.pixels import to_video
from vidvq.tokenize.config import QualityPolicy

# Of one sample, so that an unbroken stream of hours is scored in as little memory as it is encoded.
_MAX_FRAMES = 129
# The perceptual distance costs as much as encoding dozens of frames.
_PERCEPTUAL_FRAMES = 4


def is_scored(key: str, share: float) -> bool:
    """Whether a sample is among the share that is scored: by its key alone, so the same whoever encodes it."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64


def keep_frames(tokenizer: Tokenizer, chunks: Iterable[np.ndarray], kept: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass chunks on, and keep those that :meth:`Scorer.score` needs: the first; without streaming all."""
    for chunk in chunks:
        if not tokenizer.supports_streaming or sum(map(len, kept)) + len(chunk) <= _MAX_FRAMES:
            kept.append(chunk)
        yield chunk


class Scorer:
    """Scores samples by what their tokens decode to.

    Args:
        tokenizer: that encoded them.
        policy: what is scored.

    Raises:
        ValueError: the weights of the perceptual distance are not installed.
    """

    def __init__(self, tokenizer: Tokenizer, policy: QualityPolicy) -> None:
        self._tokenizer = tokenizer
        self._distance = load_perceptual("st_lpips", "alex").to(tokenizer.device) if policy.perceptual else None

    @torch.inference_mode()
    def score(self, codes: np.ndarray, kept: list[np.ndarray]) -> dict[str, float]:
        """Decode codes ``lt lh lw`` as far as frames were kept and compare.

        Returns:
            ``psnr`` in dB, to a hundredth; where asked for, ``st_lpips``, to a ten-thousandth.
        """
        frames = np.concatenate(kept)
        length, *size = frames.shape[:3]
        groups = self._tokenizer.latent_shape(length, *size)[0]
        decoded = np.concatenate(list(iter_decode(self._tokenizer, codes[:groups], length, (size[0], size[1]))))
        scores = {"psnr": round(psnr(frames, decoded), 2)}
        if self._distance:
            some = sorted(set(np.linspace(0, len(frames) - 1, _PERCEPTUAL_FRAMES).round().astype(int)))
            pairs = [self._distance(self._frame(frames, at), self._frame(decoded, at)) for at in some]
            scores["st_lpips"] = round(float(torch.stack(pairs).mean()), 4)
        return scores

    def _frame(self, frames: np.ndarray, at: int) -> torch.Tensor:
        return to_video(frames[at : at + 1])[:, :, 0].to(self._tokenizer.device)


def stats_of(scores: dict[str, float]) -> dict[str, int]:
    """What a commit record adds up of a sample's scores: whole numbers, whose sum is the same in any order."""
    return {"scored": 1} | {f"{name}{SCORE_SUFFIX}": round(value / SCORE_UNIT) for name, value in scores.items()}
