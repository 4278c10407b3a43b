"""In-flight quality: some samples are decoded back while the frames they came from are still in memory."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from vidvq.metrics.pixel import psnr
from vidvq.model import Tokenizer, VideoTokenizer
from vidvq.model.pixels import to_frames
from vidvq.tokenize.config import QualityPolicy

# Of one sample, so that an unbroken stream of hours is scored in as little memory as it is encoded.
_MAX_FRAMES = 129


def is_scored(key: str, share: float) -> bool:
    """Whether a sample is among the share that is scored: by its key alone, so the same whoever encodes it."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64


def keep_frames(tokenizer: Tokenizer, chunks: Iterable[np.ndarray], kept: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass chunks on, and keep those that :func:`score` needs: the first frames; all where there are no streams."""
    for chunk in chunks:
        if not isinstance(tokenizer, VideoTokenizer) or sum(map(len, kept)) + len(chunk) <= _MAX_FRAMES:
            kept.append(chunk)
        yield chunk


@torch.inference_mode()
def score(tokenizer: Tokenizer, codes: np.ndarray, kept: list[np.ndarray]) -> dict[str, float]:
    """Decode codes ``lt lh lw`` as far as frames were kept and compare; ``psnr`` in dB, to a hundredth."""
    frames = np.concatenate(kept)
    length, height, width = frames.shape[:3]
    grid = torch.from_numpy(codes.astype(np.int64))[None].to(tokenizer.device)
    if isinstance(tokenizer, VideoTokenizer):
        parts, state = [], None
        for t in range(tokenizer.latent_shape(length, height, width)[0]):
            video, state = tokenizer.decode_step(grid[:, t : t + 1], state)
            parts.append(to_frames(video[..., :height, :width]))
        decoded = np.concatenate(parts)[:length]
    else:
        decoded = to_frames(tokenizer.decode(grid, num_frames=length, size=(height, width)))
    return {"psnr": round(psnr(frames, decoded), 2)}


def refuse_poor(shard: str, scores: list[float], policy: QualityPolicy) -> None:
    """Stop at a shard whose scored samples are poor on the mean.

    Raises:
        OSError: names the shard and both figures.
    """
    if policy.min_psnr is None or not scores or (mean := sum(scores) / len(scores)) >= policy.min_psnr:
        return
    raise OSError(
        f"{shard}: PSNR {mean:.2f} dB on the mean of {len(scores)} scored samples is below quality.min_psnr="
        f"{policy.min_psnr:g}; what is committed stays; look at the checkpoint and the videos, or lower it and go on"
    )
