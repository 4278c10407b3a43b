"""Comparison of original clips with the frames that `vidvq decode` writes from their tokens."""

from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path

import numpy as np
from PIL import Image

from vidvq.errors import UsageError
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import TokenizerCard, read_tokenizer_card, read_tokens
from vidvq.log import progress
from vidvq.metrics.codes import CodebookUsage, CodeCounts
from vidvq.metrics.pixel import mean_frame, psnr, ssim
from vidvq.storage import pretty_json, write_atomic
from vidvq.video.decode import decode_clip


@dataclass(frozen=True)
class ClipScore:
    """Scores of a clip.

    Attributes:
        key: key of the clip.
        source: source video.
        num_frames: number of frames.
        height: height of a frame (pixels).
        width: width of a frame (pixels).
        fps: frame rate (frames per second).
        psnr: PSNR of the decoded frames (dB).
        ssim: SSIM of the decoded frames.
        mean_frame_psnr: PSNR of the repeated mean frame, a baseline (dB).
        mean_frame_ssim: SSIM of the repeated mean frame.
        bits_per_pixel: bits of all codes per pixel.
    """

    key: str
    source: str
    num_frames: int
    height: int
    width: int
    fps: float
    psnr: float
    ssim: float
    mean_frame_psnr: float
    mean_frame_ssim: float
    bits_per_pixel: float


@dataclass(frozen=True)
class Evaluation:
    """Result of `vidvq evaluate`, written as JSON.

    Attributes:
        clips: scores of each clip.
        codebooks: usage of each codebook.
        token_fingerprint: token fingerprint of the tokenizer.
    """

    clips: tuple[ClipScore, ...]
    codebooks: tuple[CodebookUsage, ...]
    token_fingerprint: str

    def mean(self, name: str) -> float:
        """Return the mean of a score over all clips, by the name of its field."""
        return float(np.mean([getattr(clip, name) for clip in self.clips]))


def run_evaluate(clips: Path, decoded: Path, tokens: Path, out: Path | None) -> Evaluation:
    """Score decoded clips.

    Args:
        clips: directory of the original clip shards.
        decoded: directory written by ``vidvq decode ... format=png``.
        tokens: directory of the token shards that were decoded.
        out: JSON file to write, or None.

    Returns:
        Scores and codebook usage.

    Raises:
        UsageError: frames are missing or of another size, or no clip is in both directories.
    """
    card = read_tokenizer_card(tokens)
    grids = {key: codes for shard in _shards(tokens) for key, codes, _ in read_tokens(shard, card)}
    scores: list[ClipScore] = []
    with progress("evaluate", len(grids), "clips") as bar:
        for shard in _shards(clips):
            for key, media, info in read_clips(shard):
                if key not in grids:
                    continue
                original, result = decode_clip(media, key), _read_frames(decoded / key)
                if original.shape != result.shape:
                    raise UsageError(
                        f"{decoded / key} has frames of shape {result.shape}, but clip {key} has {original.shape}"
                    )
                still = mean_frame(original)
                scores.append(
                    ClipScore(
                        key=key,
                        source=info.source,
                        num_frames=info.num_frames,
                        height=info.height,
                        width=info.width,
                        fps=info.fps,
                        psnr=psnr(original, result),
                        ssim=ssim(original, result),
                        mean_frame_psnr=psnr(original, still),
                        mean_frame_ssim=ssim(original, still),
                        bits_per_pixel=_bits(grids[key], card) / (info.num_frames * info.height * info.width),
                    )
                )
                bar.advance()
    if not scores:
        raise UsageError(f"{clips} and {tokens} have no clip in common; use the tokens of these clips")
    counts = CodeCounts(card)
    for codes in grids.values():
        counts.add(codes)
    evaluation = Evaluation(tuple(scores), counts.use(), card.token_fingerprint)
    if out:
        write_atomic(out, pretty_json(asdict(evaluation)))
    return evaluation


def _shards(folder: Path) -> list[Path]:
    return [path for name in read_plan(folder).shard_names() if (path := folder / name).is_file()]


def _read_frames(folder: Path) -> np.ndarray:
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise UsageError(f"{folder} has no frames; run vidvq decode with format=png first")
    frames: list[np.ndarray] = []
    for path in paths:
        with Image.open(path) as image:
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


def _bits(codes: np.ndarray, card: TokenizerCard) -> float:
    per_group = codes.shape[1] * codes.shape[2]
    return sum(per_group * log2(card.codebook_of(t).size) for t in range(codes.shape[0]))
