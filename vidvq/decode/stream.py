"""Codes to frames, group by group, in memory that does not grow with the length of the video."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from vidvq.decode.config import Stretch
from vidvq.decode.find import find_key, find_stretch, times_of
from vidvq.errors import UsageError
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, read_tokenizer_card
from vidvq.model import Tokenizer, iter_decode
from vidvq.pretrained import load_tokenizer
from vidvq.video.write import Timed


def frames(
    tokens: str | Path,
    checkpoint: str | Path,
    *,
    key: str | None = None,
    source: str | None = None,
    start: float | Fraction | None = None,
    end: float | Fraction | None = None,
) -> Iterator[Timed]:
    """Decode a clip, or a stretch of a video, one frame at a time.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint the tokens were made with.
        key: key of the clip to decode. Give either ``key`` or ``source``.
        source: video to decode, as the tokens name it.
        start: start of the interval (seconds on the source's timeline); None for the start of the video.
        end: end of the interval, exclusive (seconds on the source's timeline); None for the end of the video.

    Yields:
        Frames with ``pixels`` (``h w c`` uint8 RGB), ``start`` and ``end`` (seconds on the source's timeline).

    Raises:
        UsageError: neither key nor source is given or is known, nothing is in range, or another tokenizer's tokens.
    """
    if (key is None) == (source is None):
        raise UsageError("give key= or source=, one of them")
    place = Path(tokens)
    tokenizer, card = open_tokenizer(place, Path(checkpoint))
    known = index_tokens(place)
    if key is not None:
        codes, info = find_key(known, key, place).read(card)
        yield from decode_timed(tokenizer, codes, info)
        return
    edges = (None if edge is None else Fraction(str(edge)) for edge in (start, end))
    stretch = Stretch(str(source), *edges)
    for found in find_stretch(place, known, stretch):
        yield from within(stretch, decode_timed(tokenizer, *found.place.read(card)))


def open_tokenizer(tokens: Path, checkpoint: Path) -> tuple[Tokenizer, TokenizerCard]:
    """Load the tokenizer for some tokens, on the GPU where there is one.

    Raises:
        UsageError: the tokens were made by another one.
    """
    folder = tokens.parent if tokens.is_file() else tokens
    written = read_tokenizer_card(folder)
    tokenizer, card = load_tokenizer(checkpoint)
    check_same(folder, written, checkpoint, card)
    tokenizer.to("cuda" if torch.cuda.is_available() else "cpu")
    return tokenizer, written


def check_same(folder: Path, written: TokenizerCard, checkpoint: Path, card: TokenizerCard) -> None:
    """Refuse a checkpoint that did not make the tokens.

    Raises:
        UsageError: names both.
    """
    if card.token_fingerprint != written.token_fingerprint:
        raise UsageError(
            f"{folder} was made by tokenizer {written.token_fingerprint[:12]}, {checkpoint} is tokenizer "
            f"{card.token_fingerprint[:12]}; decode with a checkpoint of the first"
        )


def decode_groups(tokenizer: Tokenizer, codes: np.ndarray, info: TokenInfo) -> Iterator[np.ndarray]:
    """Yield the frames ``t h w c`` uint8 of each group of codes ``lt lh lw``: as many and as large as the source's.

    Raises:
        UsageError: the codes are not those of such a video, or out of range; names the source.
    """
    try:
        yield from iter_decode(tokenizer, codes, info.num_frames, (info.height, info.width))
    except UsageError as error:
        raise UsageError(f"{info.source}: {error}") from error


def decode_timed(tokenizer: Tokenizer, codes: np.ndarray, info: TokenInfo) -> Iterator[Timed]:
    """Yield each frame with its time on the source's timeline."""
    times = iter(times_of(info))
    for group in decode_groups(tokenizer, codes, info):
        for pixels in group:
            yield Timed(pixels, *next(times))


def within(stretch: Stretch, timed: Iterable[Timed]) -> Iterator[Timed]:
    """Of ascending frames those in the stretch; nothing is decoded after its end."""
    for frame in timed:
        if stretch.end is not None and frame.start >= stretch.end:
            return
        if stretch.overlaps(frame.start, frame.end):
            yield frame
