"""Scoring of samples: their tokens are decoded while the original frames are still in memory."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from vidvq.metrics.perceptual import load_perceptual
from vidvq.metrics.pixel import psnr
from vidvq.model import Tokenizer
from vidvq.model.enlarge import shrink_frames
from vidvq.model.pixels import to_video
from vidvq.model.streaming import count_groups, decode_start
from vidvq.tokenize.config import QualityPolicy

# Maximum number of frames kept of one sample: scoring a stream of hours must not need more memory than encoding it.
_MAX_FRAMES = 129
# The perceptual distance costs as much as encoding dozens of frames.
_PERCEPTUAL_FRAMES = 4


def is_scored(key: str, share: float) -> bool:
    """Whether a sample belongs to the share (0 to 1) that is scored. Depends on the key alone, not on the worker."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64


def keep_frames(tokenizer: Tokenizer, chunks: Iterable[np.ndarray], kept: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield chunks unchanged, and append the frames that :meth:`Scorer.score` needs to ``kept``.

    Args:
        tokenizer: the tokenizer; without streaming, all frames are needed, otherwise the first whole groups.
        chunks: frames ``t h w c`` uint8.
        kept: the list to append to.
    """
    groups, room = (_MAX_FRAMES - 1) // tokenizer.temporal_factor, _MAX_FRAMES
    for chunk in chunks:
        if not tokenizer.supports_streaming:
            kept.append(chunk)
        elif len(chunk) <= room:
            kept.append(chunk)
            room -= len(chunk)
        else:
            if not kept:
                # A clip is one chunk. Codes of part of a group are not those of the group.
                kept.append(chunk[: 1 + groups * tokenizer.temporal_factor])
            # Only consecutive frames can be compared.
            room = 0
        yield chunk


class Scorer:
    """Scores samples by comparing their decoded tokens with the original frames.

    Frames of a decoder for super-resolution are reduced to the size of the originals first.

    Args:
        policy: settings; ``perceptual`` adds ST-LPIPS.

    Raises:
        UsageError: the weights of the perceptual distance are not installed.
    """

    def __init__(self, tokenizer: Tokenizer, policy: QualityPolicy) -> None:
        self._tokenizer = tokenizer
        self._distance = load_perceptual("st_lpips", "alex").to(tokenizer.device) if policy.perceptual else None

    @torch.inference_mode()
    def score(self, codes: Sequence[np.ndarray | None], frames: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """Decode the codes of samples of one length and size in the same calls, and compare.

        Args:
            codes: codes ``lt lh lw`` of the whole samples, by slot; None for an empty slot. :meth:`count_groups` must
                be equal for all samples.
            frames: first frames ``t h w c`` uint8 of each sample, without empty slots.

        Returns:
            Of each sample ``psnr`` (dB, two decimals) and, with ``perceptual``, ``st_lpips`` (four decimals).
        """
        length, *size = frames[0].shape[:3]
        given = [one for one in codes if one is not None]
        groups = self.count_groups(given[0], frames[0])
        slots = list(range(len(given)))
        if self._tokenizer.decode_shape.streams > 1:
            # Each sample keeps its slot, as in the encoder: kernels may round differently for another one.
            slots = [slot for slot, one in enumerate(codes) if one is not None]
            given = [np.zeros_like(given[0][:groups]) if one is None else one for one in codes]
        videos = decode_start(self._tokenizer, [one[:groups] for one in given], length, (size[0], size[1]))
        decoded = [shrink_frames(videos[slot], self._tokenizer.upscale) for slot in slots]
        return [self._compare(*pair) for pair in zip(frames, decoded, strict=True)]

    def count_groups(self, codes: np.ndarray, frames: np.ndarray) -> int:
        """Return the number of groups of a sample to decode: those of its kept frames, and those they depend on."""
        length, height, width, _ = frames.shape
        return count_groups(self._tokenizer, len(codes), length, (height, width))

    def _compare(self, frames: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
        scores = {"psnr": round(psnr(frames, decoded), 2)}
        if self._distance:
            some = sorted(set(np.linspace(0, len(frames) - 1, _PERCEPTUAL_FRAMES).round().astype(int)))
            pairs = [self._distance(self._frame(frames, at), self._frame(decoded, at)) for at in some]
            scores["st_lpips"] = round(float(torch.stack(pairs).mean()), 4)
        return scores

    def _frame(self, frames: np.ndarray, at: int) -> torch.Tensor:
        return to_video(frames[at : at + 1])[:, :, 0].to(self._tokenizer.device)


class _Waiting(NamedTuple):
    codes: np.ndarray
    frames: np.ndarray
    groups: int
    write: Callable[[dict[str, float]], None]


class ScoreQueue:
    """Collects samples that can be decoded together, at most one per slot, and scores them together.

    Args:
        slots: number of slots; 1 scores each sample immediately.
    """

    def __init__(self, scorer: Scorer, slots: int) -> None:
        self._scorer, self._slots = scorer, slots
        self._waiting: dict[int, _Waiting] = {}

    def put(
        self, slot: int, codes: np.ndarray, kept: list[np.ndarray], write: Callable[[dict[str, float]], None]
    ) -> None:
        """Add a sample to score, immediately or together with later ones.

        Args:
            slot: index of the slot that encoded it.
            codes: codes ``lt lh lw`` of the whole sample.
            kept: its first frames, as chunks ``t h w c`` uint8.
            write: receives the scores.
        """
        frames = np.concatenate(kept)
        groups = self._scorer.count_groups(codes, frames)
        slot %= self._slots
        others = ((one.frames.shape, one.groups) for one in self._waiting.values())
        if slot in self._waiting or any(other != (frames.shape, groups) for other in others):
            self.flush()
        self._waiting[slot] = _Waiting(codes, frames, groups, write)
        if len(self._waiting) == self._slots:
            self.flush()

    def flush(self) -> None:
        """Score the waiting samples."""
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        samples = [waiting.get(slot) for slot in range(self._slots)]
        present = [one for one in samples if one]
        scores = self._scorer.score([one and one.codes for one in samples], [one.frames for one in present])
        for one, score in zip(present, scores, strict=True):
            one.write(score)
