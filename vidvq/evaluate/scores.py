"""Scores of clips and their means."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import log2
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vidvq.codebook import codebook_spans
from vidvq.evaluate.config import EvaluateConfig
from vidvq.evaluate.protocols import PROTOCOLS
from vidvq.formats.token_shard import TokenizerCard
from vidvq.log import counted
from vidvq.metrics.codes import CodebookUsage, CodeCounts
from vidvq.metrics.pixel import blocking, flicker, frame_psnr, frame_ssim, masked_psnr, psnr, static_mask

if TYPE_CHECKING:
    from vidvq.metrics.perceptual import PerceptualDistance

# Frames that the perceptual networks compare at once.
_BATCH = 4


@dataclass(frozen=True)
class Scores:
    """Scores of a video against its original.

    Attributes:
        psnr: PSNR (dB).
        ssim: SSIM.
        static_psnr: PSNR over the static positions (dB); None if there are none.
        moving_psnr: PSNR over the moving positions (dB); None if there are none.
        flicker: root mean square error of the differences between consecutive frames (levels, 0 to 510).
        blocking: steps across borders of 8x8 blocks relative to steps within blocks, divided by the same ratio of the
            original; 1 means no visible blocks.
        st_lpips: ST-LPIPS, mean of the frames (lower is better); None if not computed.
        lpips: LPIPS, mean of the frames (lower is better); None if not computed.
    """

    psnr: float
    ssim: float
    static_psnr: float | None
    moving_psnr: float | None
    flicker: float
    blocking: float
    st_lpips: float | None = None
    lpips: float | None = None


@dataclass(frozen=True)
class CodecScore(Scores):
    """Scores of a codec on one clip, at the bits of the clip's tokens.

    Attributes:
        crf: constant rate factor.
        bits_per_pixel: bits of all packets per pixel.
        fits: whether the file is within the bits of the tokens; False at the worst quality of the codec.
    """

    crf: float = 0.0
    bits_per_pixel: float = 0.0
    fits: bool = True


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
        bits_per_pixel: nominal bits per pixel, log2 of the codebook size for each code.
        entropy_bits_per_pixel: bits per pixel with an ideal entropy coder of order 0 for the frequencies of the codes
            in all scored clips; None in files of older versions, as in all that follow.
        static_share: fraction of the positions that are static in the original.
        static_psnr: PSNR over the static positions (dB); None if there are none.
        moving_psnr: PSNR over the moving positions (dB); None if there are none.
        flicker: root mean square error of the differences between consecutive frames (levels, 0 to 510).
        blocking: steps across borders of 8x8 blocks relative to steps within blocks, divided by the same ratio of the
            original; 1 means no visible blocks.
        st_lpips: ST-LPIPS, mean of the frames; None if not computed.
        lpips: LPIPS, mean of the frames; None if not computed.
        mean_frame: scores of the repeated mean frame.
        frame_psnr: PSNR of each frame (dB).
        frame_ssim: SSIM of each frame.
        frame_st_lpips: ST-LPIPS of each frame; empty if not computed.
        codecs: scores of each codec at the same bits, by its name.
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
    entropy_bits_per_pixel: float | None = None
    static_share: float | None = None
    static_psnr: float | None = None
    moving_psnr: float | None = None
    flicker: float | None = None
    blocking: float | None = None
    st_lpips: float | None = None
    lpips: float | None = None
    mean_frame: Scores | None = None
    frame_psnr: tuple[float, ...] = ()
    frame_ssim: tuple[float, ...] = ()
    frame_st_lpips: tuple[float, ...] = ()
    codecs: dict[str, CodecScore] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one tokenizer, written as JSON.

    Attributes:
        clips: scores of each clip.
        codebooks: usage of each codebook.
        token_fingerprint: token fingerprint of the tokenizer.
        name: name of the tokenizer in tables; empty for decoded files.
        code_entropy: empirical entropy of order 0 of each codebook (bits per code), by its name.
        fvd: Fréchet video distance to the originals (lower is better); None if not computed.
        fvd_windows: number of windows of frames that ``fvd`` compares.
    """

    clips: tuple[ClipScore, ...]
    codebooks: tuple[CodebookUsage, ...]
    token_fingerprint: str
    name: str = ""
    code_entropy: dict[str, float] = field(default_factory=dict)
    fvd: float | None = None
    fvd_windows: int = 0

    def mean(self, name: str) -> float:
        """Return the mean of a score over all clips, by the name of its field."""
        return float(np.mean([getattr(clip, name) for clip in self.clips]))


class Curves(NamedTuple):
    """Scores of each frame.

    Attributes:
        psnr: PSNR (dB).
        ssim: SSIM.
        st_lpips: ST-LPIPS; empty if not computed.
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    st_lpips: tuple[float, ...]


class VideoScorer:
    """Scores videos against originals.

    Raises:
        UsageError: the weights of a perceptual distance are missing.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self._deviation = config.static_deviation
        protocol = PROTOCOLS[config.protocol] if config.protocol else None
        self._by_frame = protocol is not None and protocol.psnr == "frame"
        self._gaussian = protocol is None or protocol.ssim == "gaussian"
        self._st_lpips = self._lpips = None
        if config.perceptual or config.lpips_backbone:
            from vidvq.metrics.perceptual import load_perceptual
            from vidvq.pretrained.device import find_fp32_device

            device = find_fp32_device()
            if config.perceptual:
                self._st_lpips = load_perceptual("st_lpips", "alex").to(device)
            if config.lpips_backbone:
                self._lpips = load_perceptual("lpips", config.lpips_net, config.lpips_backbone).to(device)

    def static_mask(self, original: np.ndarray) -> np.ndarray:
        """Mark the static positions ``h w`` of an original ``t h w c`` uint8."""
        return static_mask(original, self._deviation)

    def score(self, original: np.ndarray, other: np.ndarray, mask: np.ndarray) -> Scores:
        """Score a video.

        Args:
            original: frames ``t h w c`` uint8.
            other: frames of the same shape.
            mask: static positions ``h w`` of the original.
        """
        return self.score_frames(original, other, mask)[0]

    def score_frames(self, original: np.ndarray, other: np.ndarray, mask: np.ndarray) -> tuple[Scores, Curves]:
        """Score a video as :meth:`score` does, and its frames."""
        st_lpips, lpips = _distances(self._st_lpips, original, other), _distances(self._lpips, original, other)
        ssim, by_frame = frame_ssim(original, other, self._gaussian), frame_psnr(original, other)
        scores = Scores(
            psnr=float(np.mean(by_frame)) if self._by_frame else psnr(original, other),
            ssim=float(np.mean(np.asarray(ssim))),
            static_psnr=masked_psnr(original, other, mask),
            moving_psnr=masked_psnr(original, other, ~mask),
            flicker=flicker(original, other),
            blocking=blocking(original, other),
            st_lpips=float(np.mean(st_lpips)) if st_lpips else None,
            lpips=float(np.mean(lpips)) if lpips else None,
        )
        return scores, Curves(tuple(by_frame), tuple(ssim), tuple(st_lpips))


def _distances(distance: "PerceptualDistance | None", original: np.ndarray, other: np.ndarray) -> list[float]:
    if distance is None:
        return []
    import torch

    found: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(original), _BATCH):
            pair = (_to_tensor(frames[start : start + _BATCH], distance.shift.device) for frames in (original, other))
            found += distance.per_frame(*pair).tolist()
    return found


def _to_tensor(frames: np.ndarray, device: Any) -> Any:
    """Convert frames ``n h w c`` uint8 to a tensor ``n c h w`` in [-1, 1] on a device."""
    import torch

    from vidvq.model.pixels import normalize

    return normalize(torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).to(device))


def nominal_bits(codes: np.ndarray, card: TokenizerCard) -> float:
    """Return the size of codes ``lt lh lw`` (bits): log2 of the codebook size for each."""
    return sum(codes[groups].size * log2(book.size) for book, groups in codebook_spans(card.codebooks))


def finish(name: str, card: TokenizerCard, scored: Iterable[tuple[ClipScore, np.ndarray]]) -> Evaluation:
    """Add the scores that depend on all clips: the statistics of the codes.

    Args:
        scored: score and codes ``lt lh lw`` of each clip.
    """
    pairs = list(scored)
    counts = CodeCounts(card)
    for _, codes in pairs:
        counts.add(codes)
    clips = tuple(
        replace(clip, entropy_bits_per_pixel=counts.entropy_bits(codes) / (clip.num_frames * clip.height * clip.width))
        for clip, codes in pairs
    )
    usage = counts.use()
    return Evaluation(clips, usage, card.token_fingerprint, name, {book.name: book.entropy for book in usage})


# Columns of the table: title, field, digits.
_COLUMNS = (
    ("PSNR", "psnr", 2),
    ("static", "static_psnr", 2),
    ("moving", "moving_psnr", 2),
    ("SSIM", "ssim", 3),
    ("flicker", "flicker", 2),
    ("blocking", "blocking", 2),
    ("ST-LPIPS", "st_lpips", 4),
    ("LPIPS", "lpips", 4),
    ("bits/pixel", "bits_per_pixel", 4),
    ("entropy-coded", "entropy_bits_per_pixel", 4),
)


def table(evaluations: list[Evaluation]) -> list[list[str]]:
    """Means over clips: a header, a row per tokenizer, below it one per codec at its bits, and the mean frame.

    Columns without a value are left out.
    """
    rows: list[tuple[str, list[Any]]] = []
    for evaluation in evaluations:
        rows.append((evaluation.name or "decoded", list(evaluation.clips)))
        for codec in evaluation.clips[0].codecs:
            rows.append((f"  {codec} at these bits", [clip.codecs[codec] for clip in evaluation.clips]))
    frames = [clip.mean_frame for clip in evaluations[0].clips if clip.mean_frame]
    rows.append(("mean frame", list(frames)))
    means = [(name, [_mean(scores, field) for _, field, _ in _COLUMNS]) for name, scores in rows]
    shown = [index for index in range(len(_COLUMNS)) if any(values[index] is not None for _, values in means)]
    header = ["", *(_COLUMNS[index][0] for index in shown)]
    return [header, *([name, *(_cell(values[index], _COLUMNS[index][2]) for index in shown)] for name, values in means)]


def _mean(scores: list[Any], field: str) -> float | None:
    values = [value for each in scores if (value := getattr(each, field, None)) is not None]
    return float(np.mean(values)) if values else None


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def lines(evaluations: list[Evaluation]) -> Iterator[str]:
    """Yield the table, the usage of each codebook, and notes on the scores, as text."""
    rows = table(evaluations)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    yield f"{counted(len(evaluations[0].clips), 'clips')}, means over clips; PSNR in dB"
    for name, *cells in rows:
        yield "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
    for evaluation in evaluations:
        prefix = f"{evaluation.name}: " if len(evaluations) > 1 else ""
        for book in evaluation.codebooks:
            yield f"{prefix}{book.line()}, entropy {book.entropy:.2f} of {log2(book.size):.2f} bits per code"
        if evaluation.fvd is not None:
            yield f"{prefix}FVD {evaluation.fvd:.2f} over {evaluation.fvd_windows} windows"
        for codec in evaluation.clips[0].codecs:
            if over := sum(not clip.codecs[codec].fits for clip in evaluation.clips):
                yield f"{prefix}{codec} needs more bits than the tokens at its worst quality on {over} clips"
