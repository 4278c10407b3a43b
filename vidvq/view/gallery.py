"""The clips of a directory of tokens, each read and decoded when it is asked for, and where codes occur in them."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from vidvq.decode.find import frame_times
from vidvq.decode.stream import decode_groups, open_tokenizer
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import Plan, read_plan
from vidvq.formats.token_index import TokenLocation, committed_shards, index_shard
from vidvq.formats.token_shard import TokenInfo
from vidvq.log import progress
from vidvq.video.decode import decode_clip
from vidvq.view.atlas import decode_atlas, decode_patch, most_used
from vidvq.view.pictures import jpeg_sheet, png_strip
from vidvq.view.search import Search

# A long sample is shown from its start.
MAX_FRAMES = 129
# Codes are counted, and found again, in so many samples at most, and so many codes of them.
_COUNTED = 2000
_COUNTED_CODES = 64_000_000
# Of its places so many are shown, from so few clips: each has to be decoded for it.
_FOUND = 24
_FOUND_IN = 6


@dataclass(frozen=True)
class Code:
    """One code: its codebook's place in the card, and itself."""

    book: int
    code: int


class Gallery:
    """What there is to look at.

    Args:
        tokens: a directory that ``vidvq tokenize`` wrote, or one shard in it.
        checkpoint: a checkpoint, or a training run, with the token fingerprint the tokens were made with.
        clips: the clip shards they were made from, or None.

    Attributes:
        card: of the tokenizer.
        total: how many clips there are.
        counted: in how many of them codes are counted; where not in all, in some at random.
        books: per codebook what :func:`vidvq.view.atlas.decode_atlas` says of it.

    Raises:
        UsageError: another tokenizer's tokens, a damaged shard, or nothing to show.
    """

    def __init__(self, tokens: Path, checkpoint: Path, clips: Path | None) -> None:
        # Grids this small are slower on many threads than on one.
        torch.set_num_threads(1)
        self._tokenizer, self.card = open_tokenizer(tokens, checkpoint)
        self._shards = [tokens] if tokens.is_file() else committed_shards(tokens)
        # The clips before each shard, so that no shard is opened before something in it is asked for.
        self._ends = list(accumulate(_count(shard) for shard in self._shards))
        self.total = self._ends[-1] if self._ends else 0
        if not self.total:
            raise UsageError(f"{tokens} holds no clips; nothing to show")
        self._clips = (clips, read_plan(clips)) if clips else None
        # Made when something is searched for.
        self._search = cache(lambda: Search(self._shards, self._clips[1] if self._clips else None))
        self._index = lru_cache(maxsize=256)(index_shard)
        self._grids: dict[int, np.ndarray] = {}
        self.books = self._count_codes()

    @property
    def counted(self) -> int:
        """In how many clips codes are counted and found."""
        return len(self._grids)

    def place(self, index: int) -> TokenLocation:
        """Where a clip's tokens are.

        Raises:
            ValueError: there is no such clip.
        """
        if not 0 <= index < self.total:
            raise UsageError(f"clip {index} is not one of 0 to {self.total - 1}")
        shard = bisect_right(self._ends, index)
        return self._index(self._shards[shard])[index - (self._ends[shard - 1] if shard else 0)]

    def lines(self, start: int, count: int, text: str = "") -> dict[str, Any]:
        """How many clips have some words in their key or source, and what the list says of some, without decoding."""
        found = self._search().find(text) if text.strip() else range(self.total)
        clips = []
        for index in found[max(start, 0) : max(start, 0) + max(count, 0)]:
            place = self.place(index)
            info = place.read_info()
            clips.append({"index": index, "key": place.key, "source": info.source, "duration": _duration(info)})
        return {"total": len(found), "clips": clips}

    def clip(self, index: int) -> dict[str, Any]:
        """All that the page shows of one clip, its pictures among it."""
        place = self.place(index)
        codes, info = place.read(self.card)
        groups = decode_groups(self._tokenizer, codes, info)
        decoded = np.concatenate(list(islice(groups, 1 + -(-(MAX_FRAMES - 1) // self.card.temporal_factor))))
        decoded = decoded[:MAX_FRAMES]
        shown = 1 + -(-(len(decoded) - 1) // self.card.temporal_factor)
        original = self._original(place.key)
        same = original is not None and len(original) >= len(decoded) and original.shape[1:] == decoded.shape[1:]
        times = frame_times(info)
        return {
            "key": place.key,
            "source": info.source,
            "clip": info.clip_index,
            "fps": info.fps,
            "height": info.height,
            "width": info.width,
            "starts": [float(start - times[0][0]) for start, _ in times[: len(decoded)]],
            "duration": float(times[len(decoded) - 1][1] - times[0][0]),
            "frames": info.num_frames,
            "psnr": _psnr(original[: len(decoded)], decoded) if same and original is not None else None,
            "grid": [shown, *info.grid[1:]],
            "codes": [int(code) for code in codes[:shown].ravel()],
            "decoded": jpeg_sheet(decoded),
            "original": jpeg_sheet(original[: len(decoded)]) if same and original is not None else None,
        }

    def occurrences(self, of: Code) -> dict[str, Any]:
        """How often a code occurs in the clips that are counted, some of the places, and what a rare one decodes to."""
        if not 0 <= of.book < len(self.books):
            raise UsageError(f"codebook {of.book} is not one of 0 to {len(self.books) - 1}")
        book, count, found = self.card.codebooks[of.book], 0, []
        for index, grid in sorted(self._grids.items()):
            here = [row for row in np.argwhere(grid == of.code) if self.card.codebook_of(row[0]) == book]
            count += len(here)
            # A long sample is shown from its start.
            shown = [row for row in here if (row[0] - 1) * self.card.temporal_factor + 1 < MAX_FRAMES][:_FOUND]
            if shown and len(found) < _FOUND_IN:
                found.append([{"index": index, "t": int(t), "y": int(y), "x": int(x)} for t, y, x in shown])
        spread = [place for turn in zip_longest(*found) for place in turn if place][:_FOUND]
        # The atlas has the most used codes alone.
        rare = 0 <= of.code < book.size and of.code not in self.books[of.book]["codes"]
        patch = decode_patch(self._tokenizer, self.card, book, of.code, self._spatial) if rare else None
        return {
            "count": count,
            "places": sorted(spread, key=lambda place: place["index"]),
            "patch": None if patch is None else png_strip(patch),
        }

    def _count_codes(self) -> list[dict[str, Any]]:
        usage = {book.name: np.zeros(book.size, dtype=np.int64) for book in self.card.codebooks}
        chosen = np.random.default_rng(0).permutation(self.total)[:_COUNTED].tolist()
        chosen = sorted(chosen) if self.total <= _COUNTED else chosen
        left = _COUNTED_CODES
        with progress("view", len(chosen), "clips") as bar:
            for index in chosen:
                codes, _ = self.place(index).read(self.card)
                left -= codes.size
                if left < 0 and self._grids:
                    break
                self._grids[index] = codes
                for t, group in enumerate(codes):
                    book = self.card.codebook_of(t)
                    usage[book.name] += np.bincount(group.ravel(), minlength=book.size)
                bar.advance()
        self._spatial = most_used(self.card, usage)
        books = decode_atlas(self._tokenizer, self.card, usage)
        return [book | {"strip": png_strip(book["strip"])} for book in books]

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


def _psnr(before: np.ndarray, after: np.ndarray) -> float:
    error = np.mean((before.astype(np.float64) - after) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
