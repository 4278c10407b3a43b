"""Streaming decode of codes to frames, group by group: memory does not grow with the length of the video."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from math import isfinite
from numbers import Real
from pathlib import Path

import numpy as np
import torch

from vidvq.decode.config import VideoInterval
from vidvq.decode.find import find_clips, find_key, frame_times
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import resolve_checkpoint
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, check_fingerprint, read_tokenizer_card
from vidvq.model import Tokenizer, iter_decode
from vidvq.model.step_shape import GPU_STREAM
from vidvq.pretrained import load_tokenizer
from vidvq.storage import resolve_path
from vidvq.video.write import TimedFrame


def frames(
    tokens: str | Path,
    checkpoint: str | Path,
    *,
    key: str | None = None,
    source: str | None = None,
    start: float | Fraction | None = None,
    end: float | Fraction | None = None,
) -> Iterator[TimedFrame]:
    """Decode a clip, or an interval of a video, one frame at a time.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint of the tokens.
        key: key of the clip to decode. Give either ``key`` or ``source``.
        source: path or URI of the video to decode, as in the JSON of its token samples.
        start: start of the interval (seconds on the source's timeline); None for the start of the video.
        end: end of the interval, exclusive (seconds on the source's timeline); None for the end of the video.

    Yields:
        Frames with ``pixels`` (``h w c`` uint8 RGB), ``start`` and ``end`` (seconds on the source's timeline,
        as fractions).

    Raises:
        UsageError: not exactly one of ``key`` and ``source`` is given, it is unknown, an interval is given with
            ``key``, no frame is in it, or the tokens are of another tokenizer.
    """
    if (key is None) == (source is None):
        raise UsageError("give exactly one of key= and source=")
    for name, edge in (("start", start), ("end", end)):
        if edge is not None and key is not None:
            raise UsageError(f"{name}={edge!r} is a time in a source; give source= instead of key={key!r}")
        if edge is not None and not (isinstance(edge, Real) and isfinite(edge)):
            raise UsageError(f"{name}={edge!r} must be a number of seconds, or None")
    path = resolve_path(tokens)
    tokenizer, card = open_tokenizer(path, resolve_checkpoint(checkpoint))
    known = index_tokens(path)
    if key is not None:
        codes, info = find_key(known, str(key), path).read(card)
        yield from decode_frames(tokenizer, codes, info)
        return
    edges = (None if edge is None else Fraction(str(edge)) for edge in (start, end))
    interval = VideoInterval(str(source), *edges)
    for found in find_clips(path, known, interval):
        yield from in_interval(interval, decode_frames(tokenizer, *found.location.read(card)))


def open_tokenizer(tokens: Path, checkpoint: Path, batch: int = 1) -> tuple[Tokenizer, TokenizerCard]:
    """Load a tokenizer to decode tokens in fp32, not compiled, on a GPU if there is one.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run.
        batch: clips per call of the decoder on a GPU.

    Returns:
        The tokenizer and its card.

    Raises:
        UsageError: the tokens were made by another tokenizer.
    """
    tokenizer, card = load_for_tokens(tokens, checkpoint)
    if torch.cuda.is_available():
        tokenizer.to("cuda")
        tokenizer.decode_shape = replace(GPU_STREAM, streams=batch)
    return tokenizer, card


def load_for_tokens(tokens: Path, checkpoint: Path) -> tuple[Tokenizer, TokenizerCard]:
    """Load a tokenizer on the CPU to decode tokens, and its card.

    Raises:
        UsageError: the tokens were made by another tokenizer.
    """
    folder = tokens.parent if tokens.is_file() else tokens
    written = read_tokenizer_card(folder)
    tokenizer, card = load_tokenizer(checkpoint)
    check_fingerprint(folder, written, checkpoint, card)
    return tokenizer, card


def decode_frames(tokenizer: Tokenizer, codes: np.ndarray, info: TokenInfo) -> Iterator[TimedFrame]:
    """Yield each frame of codes ``lt lh lw``, sized as in ``info`` times ``upscale``, with its time in the source.

    Raises:
        UsageError: the codes do not match ``info``, or a code is out of range; the message gives the source.
    """
    try:
        yield from with_times(iter_decode(tokenizer, codes, info.num_frames, (info.height, info.width)), info)
    except UsageError as error:
        raise UsageError(f"{info.source}: {error}") from error


def with_times(groups: Iterable[np.ndarray], info: TokenInfo) -> Iterator[TimedFrame]:
    """Yield each frame of arrays ``t h w c`` uint8 with its time on the source's timeline."""
    times = iter(frame_times(info))
    for group in groups:
        for pixels in group:
            yield TimedFrame(pixels, *next(times))


def in_interval(interval: VideoInterval, timed: Iterable[TimedFrame]) -> Iterator[TimedFrame]:
    """Yield the frames in the interval; the input must be sorted by time and is not read past the end."""
    for frame in timed:
        if interval.end is not None and frame.start >= interval.end:
            return
        if interval.overlaps(frame.start, frame.end):
            yield frame
