"""The HTML page of the worst clips: originals beside reconstructions, in one file without network access."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from vidvq.evaluate.media import DIFFERENCE_GAIN, encode_jpeg, side_by_side, still_frames, still_sheet
from vidvq.evaluate.scores import ClipScore, Evaluation, Scores, table
from vidvq.formats.clip_shard import ClipInfo
from vidvq.html_page import data_uri, render_page

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_CHART_WIDTH, _CHART_HEIGHT = 640, 120
_COLOURS = 4


@dataclass(frozen=True)
class Curve:
    """PSNR by frame of one tokenizer.

    Attributes:
        points: coordinates of a polyline, as SVG has them.
        colour: number of its colour in the palette.
        low, high: smallest and largest value (dB).
    """

    name: str
    points: str
    colour: int
    low: float
    high: float


@dataclass(frozen=True, order=True)
class Entry:
    """One clip of the page; entries are ordered by PSNR.

    Attributes:
        psnr: PSNR of the first tokenizer (dB).
        title: source and index of the clip.
        video: data URI of the original and the reconstructions, side by side.
        size: width and height of the video (pixels).
        stills: data URI of the first, middle and last frame.
        shown: indices of these frames.
        rows: name and scores of each tokenizer and of the mean frame.
        curves: PSNR by frame.
    """

    psnr: float
    key: str
    title: str = field(compare=False)
    video: str = field(compare=False)
    size: tuple[int, int] = field(compare=False)
    stills: str = field(compare=False)
    shown: tuple[int, ...] = field(compare=False)
    rows: tuple[tuple[str, ...], ...] = field(compare=False)
    curves: tuple[Curve, ...] = field(compare=False)


class WorstClips:
    """The clips with the lowest PSNR of the first tokenizer, with their pictures.

    Args:
        count: number of clips to keep.
    """

    def __init__(self, count: int, names: Sequence[str]) -> None:
        self._count, self._names = count, [name or "decoded" for name in names]
        self._entries: list[Entry] = []

    def add(
        self, info: ClipInfo, original: np.ndarray, frames: Sequence[np.ndarray], scores: Sequence[ClipScore]
    ) -> None:
        """Add a clip, unless enough worse ones are known.

        Args:
            original: frames ``t h w c`` uint8.
            frames: reconstruction by each tokenizer.
        """
        first = scores[0]
        full = len(self._entries) == self._count
        if full and (first.psnr, first.key) >= (self._entries[-1].psnr, self._entries[-1].key):
            return
        media, size = side_by_side([original, *frames], info.pts, info.seconds_per_tick)
        entry = Entry(
            psnr=first.psnr,
            key=first.key,
            title=f"{PurePath(info.source).name}, clip {info.clip_index}",
            video=data_uri("video/mp4", media),
            size=size,
            stills=data_uri("image/jpeg", encode_jpeg(still_sheet(original, frames))),
            shown=tuple(still_frames(len(original))),
            rows=tuple(_rows(self._names, scores)),
            curves=_curves(self._names, scores),
        )
        insort(self._entries, entry)
        del self._entries[self._count :]

    def render(self, evaluations: list[Evaluation]) -> bytes:
        """Render the page, UTF-8."""
        values = {
            "table": table(evaluations),
            "entries": self._entries,
            "total": len(evaluations[0].clips),
            "names": self._names,
            "gain": DIFFERENCE_GAIN,
            "width": _CHART_WIDTH,
            "height": _CHART_HEIGHT,
        }
        return render_page(_TEMPLATE, values)


def _rows(names: Sequence[str], scores: Sequence[ClipScore]) -> list[tuple[str, ...]]:
    named: list[tuple[str, ClipScore | Scores]] = list(zip(names, scores, strict=True))
    if still := scores[0].mean_frame:
        named.append(("mean frame", still))
    return [(name, *_cells(score)) for name, score in named]


def _cells(score: ClipScore | Scores) -> tuple[str, ...]:
    psnr = (score.psnr, score.static_psnr, score.moving_psnr)
    return (*("-" if value is None else f"{value:.2f}" for value in psnr), f"{score.ssim:.3f}")


def _curves(names: Sequence[str], scores: Sequence[ClipScore]) -> tuple[Curve, ...]:
    """Lines of PSNR by frame, all on one scale; none for a single frame."""
    length = len(scores[0].frame_psnr)
    if length < 2:
        return ()
    values = [value for score in scores for value in score.frame_psnr]
    low, high = min(values), max(values)
    scale = (_CHART_HEIGHT - 2) / ((high - low) or 1)
    return tuple(
        Curve(
            name=name,
            points=" ".join(
                f"{index * _CHART_WIDTH / (length - 1):.1f},{_CHART_HEIGHT - 1 - (value - low) * scale:.1f}"
                for index, value in enumerate(score.frame_psnr)
            ),
            colour=1 + position % _COLOURS,
            low=low,
            high=high,
        )
        for position, (name, score) in enumerate(zip(names, scores, strict=True))
    )
