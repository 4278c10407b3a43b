"""Lazy access to the clips of a token directory: decoding on request, and occurrences of codes."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from vidvq.codebook import codebook_spans
from vidvq.decode.batch import Clip, decode_together
from vidvq.decode.config import default_batch
from vidvq.decode.stream import open_tokenizer
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.code_statistics import read_code_statistics
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import Plan, read_clip_plan
from vidvq.formats.token_index import committed_shards, index_shard
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import TokenInfo
from vidvq.log import progress, warn
from vidvq.metrics.pixel import psnr
from vidvq.model.enlarge import shrink_frames
from vidvq.video.decode import decode_clip
from vidvq.video.write import TimedFrame
from vidvq.view.atlas import decode_atlas, decode_patches, most_used
from vidvq.view.pictures import jpeg_sheet, png_strip, sheet_capacity
from vidvq.view.search import SearchIndex

# Longer samples are cut to this number of frames, those of large frames to this number of pixels.
MAX_FRAMES = 129
_MAX_PIXELS = 1 << 26
# Limits of the samples and codes that are counted and searched.
_COUNTED = 2000
_COUNTED_CODES = 64_000_000
# Samples whose keys are compared with those of the clips.
_COMPARED = 200
# Limits of the occurrences shown and of their clips; each of these clips must be decoded.
_SHOWN = 24
_SHOWN_CLIPS = 6


class Gallery:
    """Clips and codebooks of a token directory, for the page.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint of the tokens.
        clips: directory of the clip shards that the tokens were made from, to show the originals; None for none.
        statistics: file that `vidvq generate evaluate --codes` wrote, to show in the atlas; None for none.

    Attributes:
        total: number of clips.
        books: result of :func:`vidvq.view.atlas.decode_atlas`, with PNG data URIs as strips.
        statistics: how well a generator predicts the codes; None for none.

    Raises:
        UsageError: the tokens are of another tokenizer, a shard is damaged, there are no clips, or none of them is in
            ``clips``.
    """

    def __init__(self, tokens: Path, checkpoint: Path, clips: Path | None, statistics: Path | None = None) -> None:
        # Grids this small decode slower on several threads than on one.
        torch.set_num_threads(1)
        self._tokenizer, self.card = open_tokenizer(tokens, checkpoint, default_batch(torch.cuda.is_available()))
        self.statistics = read_code_statistics(statistics) if statistics else None
        if self.statistics and self.statistics.token_fingerprint != self.card.token_fingerprint:
            raise UsageError(
                f"{statistics} is of tokenizer {self.statistics.token_fingerprint[:12]}, {tokens} of "
                f"{self.card.token_fingerprint[:12]}; evaluate a generator of these tokens with --codes"
            )
        self._shards = [tokens] if tokens.is_file() else committed_shards(tokens)
        # Cumulative clip counts, so that a shard is opened only when one of its clips is requested.
        self._ends = list(accumulate(_count(shard) for shard in self._shards))
        self.total = self._ends[-1] if self._ends else 0
        if not self.total:
            raise UsageError(f"{tokens} has no clips to show")
        self._index = lru_cache(maxsize=256)(index_shard)
        self._clips = (clips, self._read_clip_plan(clips, tokens)) if clips else None
        # Built at the first search.
        self._search = cache(lambda: SearchIndex(self._shards, self._clips[1] if self._clips else None))
        self._grids: dict[int, np.ndarray] = {}
        self.books = self._count_codes()

    @property
    def counted(self) -> int:
        """Number of clips whose codes are counted and searched; a random subset of a large directory."""
        return len(self._grids)

    def locate(self, index: int) -> TokenLocation:
        """Locate the tokens of a clip.

        Raises:
            UsageError: the index is out of range.
        """
        if not 0 <= index < self.total:
            raise UsageError(f"clip {index} is out of range; the clips are 0 to {self.total - 1}")
        shard = bisect_right(self._ends, index)
        return self._index(self._shards[shard])[index - (self._ends[shard - 1] if shard else 0)]

    def list_clips(self, start: int, count: int, text: str = "") -> dict[str, Any]:
        """Search clips, without decoding them.

        Args:
            start: index of the first result to return.
            count: maximum number of results to return.
            text: words that the key or the source must contain; empty for all clips.

        Returns:
            The number of matches (``total``), and index, key, source and duration (seconds) of those asked for
            (``clips``).
        """
        found = self._search().find(text) if text.strip() else range(self.total)
        clips = []
        for index in found[max(start, 0) : max(start, 0) + max(count, 0)]:
            location = self.locate(index)
            info = location.read_info()
            clips.append({"index": index, "key": location.key, "source": info.source, "duration": _duration(info)})
        return {"total": len(found), "clips": clips}

    def clip(self, index: int) -> dict[str, Any]:
        """Everything that the page shows of one clip, including its frames as data URIs."""
        return next(self.clips([index]))

    def clips(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield what :meth:`clip` returns for each of several clips, which a GPU decodes in the same calls."""
        batch = default_batch(torch.cuda.is_available())
        for start in range(0, len(indices), batch):
            locations = [self.locate(index) for index in indices[start : start + batch]]
            clips = [Clip(*location.read(self.card)) for location in locations]
            shown: dict[int, dict[str, Any]] = {}
            for at, frames in decode_together(self._tokenizer, clips):
                cut = islice(frames, self._max_frames(clips[at].codes))
                shown[at] = self._show(locations[at].key, clips[at], list(cut))
            yield from (shown[at] for at in sorted(shown))

    def _show(self, key: str, clip: Clip, frames: list[TimedFrame]) -> dict[str, Any]:
        codes, info = clip.codes, clip.info
        # At the size of the original: that of the token grid.
        decoded = shrink_frames(np.stack([frame.pixels for frame in frames]), self._tokenizer.upscale)
        shown = 1 + -(-(len(decoded) - 1) // self.card.temporal_factor)
        original = self._original(key)
        same = original is not None and len(original) >= len(decoded) and original.shape[1:] == decoded.shape[1:]
        return {
            "key": key,
            "source": info.source,
            "clip": info.clip_index,
            "fps": info.fps,
            "height": info.height,
            "width": info.width,
            "starts": [float(frame.start - frames[0].start) for frame in frames],
            "duration": float(frames[-1].end - frames[0].start),
            "frames": info.num_frames,
            "psnr": psnr(original[: len(decoded)], decoded) if same and original is not None else None,
            "grid": [shown, *info.grid[1:]],
            "codes": [int(code) for code in codes[:shown].ravel()],
            "decoded": jpeg_sheet(decoded),
            "original": jpeg_sheet(original[: len(decoded)]) if same and original is not None else None,
        }

    def occurrences(self, book: int, code: int) -> dict[str, Any]:
        """Find occurrences of a code in the counted clips.

        Args:
            book: index of the codebook in the card.
            code: local code.

        Returns:
            Their number (``count``), some positions (``places``), and the decoded patch if the atlas lacks the code
            (``patch``).
        """
        if not 0 <= book < len(self.books):
            raise UsageError(f"codebook {book} is out of range; the codebooks are 0 to {len(self.books) - 1}")
        codebook, count, found = self.card.codebooks[book], 0, []
        for index, grid in sorted(self._grids.items()):
            here = [row for row in np.argwhere(grid == code) if self.card.codebook_of(row[0]) == codebook]
            count += len(here)
            cut = self._max_frames(grid)
            shown = [row for row in here if (row[0] - 1) * self.card.temporal_factor + 1 < cut][:_SHOWN]
            if shown and len(found) < _SHOWN_CLIPS:
                found.append([{"index": index, "t": int(t), "y": int(y), "x": int(x)} for t, y, x in shown])
        spread = [position for turn in zip_longest(*found) for position in turn if position][:_SHOWN]
        # The atlas has only the most used codes.
        rare = 0 <= code < codebook.size and code not in self.books[book]["codes"]
        patches = decode_patches(self._tokenizer, self.card, codebook, [code], self._spatial) if rare else []
        return {
            "count": count,
            "places": sorted(spread, key=lambda position: position["index"]),
            "patch": png_strip(patches[0]) if patches else None,
        }

    def _max_frames(self, codes: np.ndarray) -> int:
        """Return the largest number of frames of a sample that are shown; ``codes`` is its grid."""
        height, width = (side * self.card.spatial_factor for side in codes.shape[1:])
        return max(min(MAX_FRAMES, _MAX_PIXELS // (height * width), sheet_capacity(height, width)), 1)

    def _count_codes(self) -> list[dict[str, Any]]:
        usage = {book.name: np.zeros(book.size, dtype=np.int64) for book in self.card.codebooks}
        chosen = np.random.default_rng(0).permutation(self.total)[:_COUNTED].tolist()
        chosen = sorted(chosen) if self.total <= _COUNTED else chosen
        left = _COUNTED_CODES
        with progress("view", len(chosen), "clips") as bar:
            for index in chosen:
                codes, _ = self.locate(index).read(self.card)
                left -= codes.size
                if left < 0 and self._grids:
                    break
                self._grids[index] = codes
                for book, groups in codebook_spans(self.card.codebooks):
                    np.add.at(usage[book.name], codes[groups], 1)
                bar.advance()
        self._spatial = most_used(self.card, usage)
        books = decode_atlas(self._tokenizer, self.card, usage)
        return [book | {"strip": png_strip(book["strip"])} for book in books]

    def _read_clip_plan(self, clips: Path, tokens: Path) -> Plan:
        """Read the plan of the clips, and check that some of the samples were made from them."""
        plan, remedy = read_clip_plan(clips, "--clips"), f"set --clips to the clip shards that {tokens} was made from"
        keys = [self.locate(index).key for index in range(0, self.total, -(-self.total // _COMPARED))]
        missing = [key for key in keys if _shard_of(plan, key) is None]
        if len(missing) == len(keys):
            raise UsageError(f"{clips} has no originals of the clips in {tokens}, such as {keys[0]}; {remedy}")
        if missing:
            warn(f"{len(missing)} of {len(keys)} clips have no original in {clips}, such as {missing[0]}; {remedy}")
        return plan

    def _original(self, key: str) -> np.ndarray | None:
        if self._clips is None:
            return None
        folder, plan = self._clips
        name = _shard_of(plan, key)
        if name is None or not (folder / name).is_file():
            return None
        return next((decode_clip(media, key) for found, media, _ in read_clips(folder / name) if found == key), None)


def _count(shard: Path) -> int:
    commit = read_commit(shard.parent, shard.name)
    return commit.ok if commit else len(index_shard(shard))


def _shard_of(plan: Plan, key: str) -> str | None:
    row = pc.index(plan.table["key"], key).as_py()
    return None if row < 0 else plan.shard_name(plan.table["shard"][row].as_py())


def _duration(info: TokenInfo) -> float:
    return float(info.duration * info.seconds_per_tick)
