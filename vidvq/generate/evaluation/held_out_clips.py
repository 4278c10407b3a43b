"""Held-out token samples that a generator can be scored on, and their frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vidvq.data.index import ByteRange, read_bytes, read_clip_index
from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.formats.token_index import index_tokens
from vidvq.video.decode import decode_clip


class HeldOutClips:
    """The first samples of a directory whose latent grids are no larger than those that a generator was trained on.

    Args:
        count: largest number of samples (1 or more).
        clips: directory of the clip shards that the tokens were made from; None for samples without frames.

    Attributes:
        skipped: number of samples of the directory that are too large.

    Raises:
        UsageError: all samples are too large, or a clip is missing.
    """

    def __init__(self, card: GeneratorCard, tokens: Path, count: int, clips: Path | None = None) -> None:
        self._card = card
        lt, lh, lw = card.limits
        self._longest = 1 + (lt - 1) * card.tokenizer.temporal_factor
        locations = index_tokens(tokens)
        grids = [location.read_info().grid for location in locations]
        fitting = [location for location, grid in zip(locations, grids, strict=True) if grid[1] <= lh and grid[2] <= lw]
        if not fitting:
            raise UsageError(
                f"{tokens} has no sample of at most {lh}x{lw} latents, the largest that the generator was trained on"
            )
        self.skipped, self.locations = len(locations) - len(fitting), fitting[:count]
        self._media: dict[str, ByteRange] = {}
        if clips is not None:
            index = read_clip_index([str(clips)])
            self._media = {key: index.media_range(at) for at, key in enumerate(index.keys)}
            missing = [location.key for location in self.locations if location.key not in self._media]
            if missing:
                raise UsageError(f"{clips} has no clip {missing[0]}; pass the clips that the tokens were made from")

    def __len__(self) -> int:
        return len(self.locations)

    def num_frames(self) -> list[int]:
        """Return the number of frames of each sample, at most as many as the generator knows."""
        return [min(location.read_info().num_frames, self._longest) for location in self.locations]

    def read_codes(self) -> list[np.ndarray]:
        """Read the codes ``lt lh lw`` of the samples, at most as many latent frames as the generator knows."""
        return [location.read(self._card.tokenizer)[0][: self._card.limits[0]] for location in self.locations]

    def read_frames(self) -> Iterator[np.ndarray]:
        """Yield the frames ``t h w c`` uint8 of the samples, at most as many as the generator knows.

        There are none without ``clips``.
        """
        for location in self.locations if self._media else ():
            yield decode_clip(read_bytes(self._media[location.key]), location.key)[: self._longest]
