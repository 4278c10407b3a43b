"""Images and videos of the report, as ``data:`` URIs."""

from dataclasses import dataclass

import numpy as np

from vidvq.codebook import Codebook
from vidvq.demo.report_run import NAMES, Generated, HeldOut
from vidvq.evaluate.media import (
    DIFFERENCE_GAIN,
    encode_jpeg,
    side_by_side,
    stack_rows,
    still_frames,
    still_sheet,
)
from vidvq.formats.checkpoint import Checkpoint
from vidvq.formats.token_shard import TokenizerCard
from vidvq.html_page import data_uri
from vidvq.video.encode import encode_png

_SHOWN_GROUPS = 4


@dataclass(frozen=True)
class Picture:
    """An image or a video.

    Attributes:
        width, height: size (pixels).
    """

    uri: str
    width: int
    height: int
    alt: str


def comparison_video(clip: HeldOut) -> Picture:
    """Original, reconstruction and that of the bundled tokenizer, from left to right, in one H.264 video."""
    videos = [clip.original, clip.reconstruction, *([] if clip.bundled is None else [clip.bundled])]
    media, (width, height) = side_by_side(videos, clip.info.pts, clip.info.seconds_per_tick)
    alt = f"{clip.title}: the original on the left, the reconstruction from tokens on the right"
    if clip.bundled is not None:
        alt = f"{clip.title}, from left to right: original, reconstruction, reconstruction of the bundled tokenizer"
    return Picture(data_uri("video/mp4", media), width, height, alt)


def filmstrip(clip: HeldOut) -> Picture:
    """First, middle and last frame (columns): original, each reconstruction and its difference (rows)."""
    sheet = still_sheet(clip.original, [clip.reconstruction, *([] if clip.bundled is None else [clip.bundled])])
    numbers = ", ".join(str(index) for index in still_frames(len(clip.original)))
    alt = (
        f"{clip.title}, frames {numbers} from left to right; from top to bottom the original, the reconstruction, "
        f"and their absolute difference times {DIFFERENCE_GAIN}"
        + ("" if clip.bundled is None else ", and both for the bundled tokenizer")
    )
    return Picture(data_uri("image/jpeg", encode_jpeg(sheet)), sheet.shape[1], sheet.shape[0], alt)


def generated_strip(made: Generated) -> Picture:
    """Frames of a generated clip (columns): original, generator, baseline and ceiling (rows)."""
    shown = generated_frames(made)
    sheet = stack_rows([made.frames[name][shown] for name in NAMES])
    numbers = ", ".join(str(index) for index in shown)
    alt = f"{made.task}, frames {numbers}; from top to bottom: original, generator, {made.baseline}, ceiling"
    return Picture(data_uri("image/jpeg", encode_jpeg(sheet)), sheet.shape[1], sheet.shape[0], alt)


def generated_frames(made: Generated) -> list[int]:
    """Indices of the frames of a generated clip that are shown: four, evenly spread."""
    return np.linspace(0, len(made.frames["original"]) - 1, 4).round().astype(int).tolist()


def token_pictures(clip: HeldOut, card: TokenizerCard, checkpoint: Checkpoint) -> list[tuple[str, Picture, Picture]]:
    """The first latent frames of a clip: a title, the last frame of the group, and its codes, one colour per code."""
    palettes = {book.name: _palette(book, checkpoint) for book in card.codebooks}
    pictures: list[tuple[str, Picture, Picture]] = []
    for t, codes in enumerate(clip.codes[:_SHOWN_GROUPS]):
        first = max((t - 1) * card.temporal_factor + 1, 0)
        last = min(t * card.temporal_factor, len(clip.original) - 1)
        frames = f"frame {first}" if first == last else f"frames {first} to {last}"
        book = card.codebook_of(t)
        tokens = palettes[book.name][codes]
        alt = f"Colour map of {codes.shape[0]} by {codes.shape[1]} codes, {len(np.unique(codes))} of them different"
        frame = _image("image/jpeg", clip.original[last], f"{clip.title}, original frame {last}")
        pictures.append((f"t={t}, {book.name}: {frames}", frame, _image("image/png", tokens, alt)))
    return pictures


def _palette(book: Codebook, checkpoint: Checkpoint) -> np.ndarray:
    """Colours of the codes, uint8 ``k 3``: similar for similar vectors, random if the codebook has no vectors.

    The three principal components of the vectors are red, green and blue, each spread evenly by rank.
    """
    vectors = checkpoint.tensors.get(f"quantizer.{book.name}.codebook")
    if vectors is None or vectors.shape[0] != book.size or min(vectors.shape) < 3:
        return np.random.default_rng(0).integers(40, 240, (book.size, 3), dtype=np.uint8)
    centred = vectors - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    ranks = (centred @ directions[:3].T).argsort(axis=0).argsort(axis=0)
    return np.rint(30 + 210 * ranks / (book.size - 1)).astype(np.uint8)


def _image(kind: str, pixels: np.ndarray, alt: str) -> Picture:
    media = encode_png(pixels) if kind == "image/png" else encode_jpeg(pixels)
    return Picture(data_uri(kind, media), pixels.shape[1], pixels.shape[0], alt)
