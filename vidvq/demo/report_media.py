"""Images and videos of the report, as ``data:`` URIs."""

import io
from base64 import b64encode
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vidvq.codebook import Codebook
from vidvq.demo.report_run import HeldOut
from vidvq.formats.checkpoint import Checkpoint
from vidvq.formats.token_shard import TokenizerCard
from vidvq.video.encode import encode_mp4, encode_png

GAP_PIXELS = 8
_GREY = 128
_SHOWN_SHORT_SIDE = 256
# Qualities of x264, best first; the first whose file is small enough is used, else the last.
_VIDEO_CRFS = (18, 23, 28)
_VIDEO_BYTES = 350_000
_DIFFERENCE_GAIN = 4
_SHOWN_GROUPS = 4


@dataclass(frozen=True)
class Picture:
    """An image or a video.

    Attributes:
        uri: data URI.
        width, height: size (pixels).
        alt: text alternative.
    """

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class TokenPicture:
    """One latent frame of a clip.

    Attributes:
        title: latent time, codebook and frames.
        frame: last frame of the group.
        codes: grid of codes, one colour per code.
    """

    title: str
    frame: Picture
    codes: Picture


def comparison_video(clip: HeldOut) -> Picture:
    """Original (left) and reconstruction (right) in one H.264 video, with the frame times of the clip.

    Enlarged at least twice, so that the halved chroma resolution of yuv420p loses no detail.
    """
    before, after = (_enlarge(frames) for frames in (clip.original, clip.reconstruction))
    gap = np.full((*before.shape[:2], GAP_PIXELS, 3), _GREY, dtype=np.uint8)
    frames = np.concatenate([before, gap, after], axis=2)
    media = b""
    for crf in _VIDEO_CRFS:
        media = encode_mp4(frames, clip.info.pts, clip.info.seconds_per_tick, crf)
        if len(media) <= _VIDEO_BYTES:
            break
    alt = f"{clip.title}: the original on the left, the reconstruction from tokens on the right"
    return Picture(_uri("video/mp4", media), frames.shape[2], frames.shape[1], alt)


def filmstrip(clip: HeldOut) -> Picture:
    """First, middle and last frame (columns): original, reconstruction, and their difference (rows)."""
    shown = still_frames(len(clip.original))
    before, after = clip.original[shown], clip.reconstruction[shown]
    difference = np.abs(before.astype(np.int16) - after.astype(np.int16)) * _DIFFERENCE_GAIN
    rows = [_row(frames) for frames in (before, after, difference.clip(0, 255).astype(np.uint8))]
    line = np.full((4, rows[0].shape[1], 3), _GREY, dtype=np.uint8)
    sheet = np.concatenate([rows[0], line, rows[1], line, rows[2]])
    numbers = ", ".join(str(index) for index in shown)
    alt = (
        f"{clip.title}, frames {numbers} from left to right; from top to bottom the original, the reconstruction, "
        f"and their absolute difference times {_DIFFERENCE_GAIN}"
    )
    return Picture(_uri("image/jpeg", _jpeg(sheet)), sheet.shape[1], sheet.shape[0], alt)


def still_frames(num_frames: int) -> list[int]:
    """Indices of the first, middle and last frame; fewer if the clip is shorter."""
    return sorted({0, num_frames // 2, num_frames - 1})


def token_pictures(clip: HeldOut, card: TokenizerCard, checkpoint: Checkpoint) -> list[TokenPicture]:
    """Images of the first latent frames of a clip: a frame of each group, and its grid of codes."""
    palettes = {book.name: _palette(book, checkpoint) for book in card.codebooks}
    pictures: list[TokenPicture] = []
    for t, codes in enumerate(clip.codes[:_SHOWN_GROUPS]):
        first = max((t - 1) * card.temporal_factor + 1, 0)
        last = min(t * card.temporal_factor, len(clip.original) - 1)
        frames = f"frame {first}" if first == last else f"frames {first} to {last}"
        book = card.codebook_of(t)
        tokens = palettes[book.name][codes]
        alt = f"Colour map of {codes.shape[0]} by {codes.shape[1]} codes, {len(np.unique(codes))} of them different"
        pictures.append(
            TokenPicture(
                title=f"t={t}, {book.name}: {frames}",
                frame=_image("image/jpeg", clip.original[last], f"{clip.title}, original frame {last}"),
                codes=_image("image/png", tokens, alt),
            )
        )
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


def _enlarge(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    times = max(2, round(_SHOWN_SHORT_SIDE / min(height, width)))
    size = (width * times, height * times)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])


def _row(frames: np.ndarray) -> np.ndarray:
    line = np.full((frames.shape[1], 4, 3), _GREY, dtype=np.uint8)
    parts = [part for frame in frames for part in (line, frame)]
    return np.concatenate(parts[1:], axis=1)


def _image(kind: str, pixels: np.ndarray, alt: str) -> Picture:
    media = encode_png(pixels) if kind == "image/png" else _jpeg(pixels)
    return Picture(_uri(kind, media), pixels.shape[1], pixels.shape[0], alt)


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def _uri(kind: str, media: bytes) -> str:
    return f"data:{kind};base64,{b64encode(media).decode()}"
