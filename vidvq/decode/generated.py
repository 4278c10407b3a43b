"""Codes of a generator in plain files, read as samples of token shards."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.token_shard import SPECIALS, TokenInfo, TokenizerCard, check_codes

_MAX_DENOMINATOR = 1001
_Ids = type[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class GeneratedFile:
    """A file of generated codes and how to read it.

    Attributes:
        path: ``.npy`` of integers ``[b] lt lh lw``, or ``.bin`` of bare uint16 (uint32 where the vocabulary needs it),
            little-endian, one grid after another in raster order.
        fps: frame rate of the decoded video (frames per second).
        flat: whether ids index the flat vocabulary (codebook offset plus code), with or without the special tokens of
            `vidvq export`; otherwise each codebook starts at 0.
        grid: shape ``lt lh lw`` of one video; required if the file stores no shape.
    """

    path: Path
    fps: float
    flat: bool = False
    grid: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class GeneratedClip:
    """One video in a file of generated codes, sent to a worker that reads only this video.

    Attributes:
        key: name of the video.
        index: index of its grid in the file.
        label: file and index, for error messages.
    """

    file: GeneratedFile
    key: str
    index: int
    label: str

    def read(self, card: TokenizerCard) -> tuple[np.ndarray, TokenInfo]:
        """Read the local codes ``lt lh lw`` and the metadata to decode them.

        Raises:
            UsageError: an id is out of range; the message gives its position.
        """
        file, ids = self.file, _load(self.file, card)[0][self.index]
        codes = _to_local(ids.astype(np.int64), card, self.label) if file.flat else ids
        remedy = "" if file.flat else "Give --flat if they are ids of the flat vocabulary"
        check_codes(codes, card, self.label, remedy=remedy)
        clock = 1 / Fraction(file.fps).limit_denominator(_MAX_DENOMINATOR)
        lt, lh, lw = codes.shape
        num_frames = 1 + (lt - 1) * card.temporal_factor
        info = TokenInfo(
            source=str(file.path),
            clip_index=self.index,
            grid=(lt, lh, lw),
            num_frames=num_frames,
            height=lh * card.spatial_factor,
            width=lw * card.spatial_factor,
            fps=float(1 / clock),
            time_base=str(clock),
            pts=tuple(range(num_frames)),
            duration=num_frames,
        )
        return codes.astype(card.dtype), info


def index_generated(file: GeneratedFile, card: TokenizerCard) -> list[GeneratedClip]:
    """List the videos in a file, after checking every id.

    Raises:
        UsageError: the file is not readable with these options, or an id is out of range.
    """
    batch, many = _load(file, card)
    stem, clips = file.path.stem, []
    for index in range(len(batch)):
        key, label = (f"{stem}-{index:05d}", f"{file.path}[{index}]") if many else (stem, str(file.path))
        clips.append(GeneratedClip(file, key, index, label))
        clips[-1].read(card)
    return clips


def _load(file: GeneratedFile, card: TokenizerCard) -> tuple[np.ndarray, bool]:
    """All grids ``b lt lh lw``, and whether the file holds a batch of them."""
    path = file.path
    ids = _open(path, card.dtype)
    if ids.dtype.kind not in "iu":
        raise UsageError(f"{path} holds {ids.dtype}; codes are integers")
    if ids.ndim in (3, 4) and ids.size:
        if file.grid and tuple(ids.shape[-3:]) != file.grid:
            raise UsageError(f"{path} has shape {ids.shape}, --grid is {_format_grid(file.grid)}; drop --grid")
        return (ids, True) if ids.ndim == 4 else (ids[None], False)
    if ids.ndim != 1 or not ids.size:
        raise UsageError(f"{path} has shape {ids.shape}; codes are lt lh lw, b lt lh lw, or flat with --grid LT,LH,LW")
    if file.grid is None:
        raise UsageError(f"{path} has {ids.size} ids without a shape; give --grid LT,LH,LW")
    tokens = math.prod(file.grid)
    if file.flat:
        ids = _without_specials(file, card.dtype, card.vocabulary, path.stat().st_mtime_ns)
    if not ids.size:
        raise UsageError(f"{path} has only special tokens; give a file with the codes of a clip")
    if ids.size % tokens:
        raise UsageError(f"{path} has {ids.size} ids; --grid {_format_grid(file.grid)} needs a multiple of {tokens}")
    return ids.reshape(-1, *file.grid), ids.size > tokens


def _open(path: Path, dtype: _Ids) -> np.ndarray:
    """Map the ids of a file into memory; a ``.bin`` holds bare ids of type ``dtype``."""
    try:
        if path.suffix == ".npy":
            return np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
        item = np.dtype(dtype).newbyteorder("<")
        if size % item.itemsize or not size:
            raise UsageError(f"its {size} bytes are not a whole number of {item.name} ids")
        return np.memmap(path, dtype=item, mode="r")
    except (ValueError, EOFError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is not a readable file of codes: {error}") from error


# Cached, because each video of a file loads it again.
@lru_cache(maxsize=1)
def _without_specials(file: GeneratedFile, dtype: _Ids, vocabulary: int, modified_ns: int) -> np.ndarray:
    """Flat ids without the special tokens that `vidvq export` writes around clips and before latent frames.

    Raises:
        UsageError: a special token is elsewhere.
    """
    ids = _open(file.path, dtype)
    assert file.grid is not None
    positions = np.flatnonzero((ids >= vocabulary) & (ids < vocabulary + len(SPECIALS)))
    if not len(positions):
        return ids
    codes_before = positions - np.arange(len(positions))
    starts_group = ids[positions] == vocabulary + SPECIALS.index("group_start")
    period = np.where(starts_group, file.grid[1] * file.grid[2], math.prod(file.grid))
    if len(wrong := np.flatnonzero(codes_before % period)):
        position = int(positions[wrong[0]])
        raise UsageError(
            f"{file.path}: the special token {int(ids[position])} at {position} is inside a grid of "
            f"{_format_grid(file.grid)}; the ids are cut off, or of another --grid"
        )
    return np.delete(ids, positions)


def _format_grid(grid: tuple[int, int, int]) -> str:
    return ",".join(map(str, grid))


def _to_local(ids: np.ndarray, card: TokenizerCard, label: str) -> np.ndarray:
    """Convert ids of the flat vocabulary to codes of each codebook."""
    books = [card.codebook_of(t) for t in range(ids.shape[0])]
    low = np.array([book.offset for book in books])[:, None, None]
    high = low + np.array([book.size for book in books])[:, None, None]
    bad = np.argwhere((ids < low) | (ids >= high))
    if len(bad):
        t, h, w = (int(index) for index in bad[0])
        book = books[t]
        raise UsageError(
            f"{label}: id {int(ids[t, h, w])} at t={t} h={h} w={w} is out of range; the {book.name} codebook has ids "
            f"{book.offset} to {book.offset + book.size - 1}"
        )
    return ids - low
