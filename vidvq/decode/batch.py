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

# Clips of a call on a GPU, by default.
GPU_CLIPS = 8
# Frames that are held in memory at a time; longer clips are decoded one by one, as streams.
_MAX_BYTES = 1 << 29


@dataclass(frozen=True)
class Item:
    """One clip to decode into one file or folder, sent to a worker."""

    location: TokenLocation | GeneratedClip
    path: Path


@dataclass(frozen=True)
class Clip:
    """A clip that was read.

    Attributes:
        item: where it came from and goes to.
        codes: ``lt lh lw``.
        info: its JSON.
    """

    item: Item
    codes: np.ndarray
    info: TokenInfo

    @property
    def shape(self) -> tuple[int, ...]:
        """Length and size; clips of one shape can be decoded together."""
        return (*self.codes.shape, self.info.num_frames, self.info.height, self.info.width)

    @property
    def nbytes(self) -> int:
        """Size of its frames before any enlargement (bytes)."""
        return 3 * self.info.num_frames * self.info.height * self.info.width


def decode_together(tokenizer: Tokenizer, clips: Sequence[Clip]) -> Iterator[tuple[Clip, Iterator[TimedFrame]]]:
    """Decode clips of one shape.

    Args:
        tokenizer: the tokenizer.
        clips: the clips; at least one.

    Yields:
        Each clip with its frames, which must be read before the next clip.

    Raises:
        UsageError: codes do not match the JSON, or a code is out of range; the message gives a source.
    """
    count = max(_MAX_BYTES // max(clips[0].nbytes * tokenizer.upscale**2, 1), 1)
    for start in range(0, len(clips), count):
        some = clips[start : start + count]
        if len(some) == 1:
            yield some[0], decode_frames(tokenizer, some[0].codes, some[0].info)
            continue
        info = some[0].info
        codes = [clip.codes for clip in some]
        try:
            parts = list(iter_decode_batch(tokenizer, codes, info.num_frames, (info.height, info.width)))
        except UsageError as error:
            raise UsageError(f"{info.source}: {error}") from error
        for index, clip in enumerate(some):
            yield clip, with_times([part[index] for part in parts], clip.info)
