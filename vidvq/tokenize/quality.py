"""Scores of samples, which are decoded while their original frames are still in memory."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from vidvq.metrics.perceptual import load_perceptual
from vidvq.metrics.pixel import psnr
from vidvq.model import Tokenizer, iter_decode
from vidvq.model.pixels import to_video
from vidvq.tokenize.config import QualityPolicy

# Frames that are kept of one sample: scoring an unbroken stream of hours must not need more memory than encoding it.
_MAX_FRAMES = 129
# The perceptual distance costs as much as encoding dozens of frames.
_PERCEPTUAL_FRAMES = 4


def is_scored(key: str, share: float) -> bool:
    """Whether a sample belongs to the share (0 to 1) that is scored. Depends on the key alone, not on the worker."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64


def keep_frames(tokenizer: Tokenizer, chunks: Iterable[np.ndarray], kept: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield chunks unchanged, and append to ``kept`` those that :meth:`Scorer.score` needs.

    Args:
        tokenizer: the tokenizer; without streaming, all chunks are needed, else the first ones.
        chunks: frames ``t h w c`` uint8.
        kept: the list to append to.
    """
    for chunk in chunks:
        if not tokenizer.supports_streaming or sum(map(len, kept)) + len(chunk) <= _MAX_FRAMES:
            kept.append(chunk)
        yield chunk


class Scorer:
    """Scores samples by comparing their decoded tokens with the original frames.

    Args:
        tokenizer: the tokenizer that encoded them.
        policy: settings; ``perceptual`` adds ST-LPIPS.

    Raises:
        UsageError: the weights of the perceptual distance are not installed.
    """

    def __init__(self, tokenizer: Tokenizer, policy: QualityPolicy) -> None:
        self._tokenizer = tokenizer
        self._distance = load_perceptual("st_lpips", "alex").to(tokenizer.device) if policy.perceptual else None

    @torch.inference_mode()
    def score(self, codes: np.ndarray, kept: list[np.ndarray]) -> dict[str, float]:
        """Decode the codes of the kept frames and compare.

        Args:
            codes: codes ``lt lh lw`` of the whole sample.
            kept: its first frames, as chunks ``t h w c`` uint8.

        Returns:
            ``psnr`` (dB, two decimals) and, with ``perceptual``, ``st_lpips`` (four decimals).
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
