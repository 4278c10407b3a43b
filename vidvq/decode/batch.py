"""Decoding of several clips in the same calls of the network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidvq.decode.generated import GeneratedClip
from vidvq.decode.stream import decode_frames, with_times
from vidvq.errors import UsageError
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import TokenInfo
from vidvq.model import Tokenizer, iter_decode_batch
from vidvq.video.write import TimedFrame

# Maximum size of the frames that are held in memory, to decode clips together or to write them together (bytes); longer
# clips are decoded one by one, as streams.
MAX_BYTES = 1 << 29


@dataclass(frozen=True)
class Item:
    """One clip to decode into one file or folder, sent to a worker."""

    location: TokenLocation | GeneratedClip
    path: Path


@dataclass(frozen=True)
class Clip:
    """Codes and metadata of a clip.

    Attributes:
        codes: ``lt lh lw``.
        info: content of the clip's JSON.
    """

    codes: np.ndarray
    info: TokenInfo

    @property
    def shape(self) -> tuple[int, ...]:
        """Length and size; clips with equal shapes can be decoded together."""
        return (*self.codes.shape, self.info.num_frames, self.info.height, self.info.width)

    def nbytes(self, upscale: int) -> int:
        """Size of its frames after enlargement (bytes)."""
        return 3 * self.info.num_frames * self.info.height * self.info.width * upscale**2


def decode_together(tokenizer: Tokenizer, clips: Sequence[Clip]) -> Iterator[tuple[int, Iterator[TimedFrame]]]:
    """Decode clips, those of one shape in the same calls.

    Yields:
        Index and frames of each clip; the frames must be read before the next clip.

    Raises:
        UsageError: codes do not match the JSON, or a code is out of range; the message gives a source.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, clip in enumerate(clips):
        by_shape.setdefault(clip.shape, []).append(index)
    for indices in by_shape.values():
        count = max(MAX_BYTES // max(clips[indices[0]].nbytes(tokenizer.upscale), 1), 1)
        # The caller writes the clips of a step while the next one is decoded.
        if tokenizer.decode_shape.streams > 1:
            count = min(count, tokenizer.decode_shape.streams)
        for start in range(0, len(indices), count):
            yield from _decode_same_shape(tokenizer, clips, indices[start : start + count])


def _decode_same_shape(
    tokenizer: Tokenizer, clips: Sequence[Clip], indices: Sequence[int]
) -> Iterator[tuple[int, Iterator[TimedFrame]]]:
    info = clips[indices[0]].info
    if len(indices) == 1:
        yield indices[0], decode_frames(tokenizer, clips[indices[0]].codes, info)
        return
    codes = [clips[index].codes for index in indices]
    try:
        parts = list(iter_decode_batch(tokenizer, codes, info.num_frames, (info.height, info.width)))
    except UsageError as error:
        raise UsageError(f"{info.source}: {error}") from error
    for slot, index in enumerate(indices):
        yield index, with_times([part[slot] for part in parts], clips[index].info)
