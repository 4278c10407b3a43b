"""What a generator made, as codes in plain files, in the terms of token shards."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, check_codes

_MAX_DENOMINATOR = 1001


@dataclass(frozen=True)
class Generated:
    """How a generator's file is to be read.

    Attributes:
        path: ``.npy`` of integers ``[b] lt lh lw``, or ``.bin`` of bare uint16 (uint32 where the vocabulary needs it),
            little-endian, one grid after another in raster order.
        fps: frames per second of the video it stands for.
        flat: ids count through all codebooks, as offsets in ``tokenizer.json`` say; else each codebook from 0.
        grid: ``lt lh lw`` of one video; needed where the file has no shape.
    """

    path: Path
    fps: float
    flat: bool = False
    grid: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class GeneratedPlace:
    """One video in a generator's file; travels to a worker, which reads that one alone.

    Attributes:
        given: the file.
        key: the video's name.
        index: which of the grids it is.
        where: the place in words.
    """

    given: Generated
    key: str
    index: int
    where: str

    def read(self, card: TokenizerCard) -> tuple[np.ndarray, TokenInfo]:
        """Its local codes ``lt lh lw`` and what decodes them.

        Raises:
            ValueError: an id is out of range; names its place.
        """
        given, ids = self.given, _load(self.given, card)[0][self.index]
        codes = _local(ids.astype(np.int64), card, self.where) if given.flat else ids
        remedy = "" if given.flat else "Give --flat if ids count through all codebooks"
        check_codes(codes, card, self.where, remedy=remedy)
        clock = 1 / Fraction(given.fps).limit_denominator(_MAX_DENOMINATOR)
        lt, lh, lw = codes.shape
        num_frames = 1 + (lt - 1) * card.temporal_factor
        info = TokenInfo(
            source=str(given.path),
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


def index_generated(given: Generated, card: TokenizerCard) -> list[GeneratedPlace]:
    """The videos in a file, every id of which has been checked.

    Raises:
        UsageError: the file cannot be read so, or an id is out of range; names its place.
    """
    batch, many = _load(given, card)
    stem, places = given.path.stem, []
    for index in range(len(batch)):
        key, where = (f"{stem}-{index:05d}", f"{given.path}[{index}]") if many else (stem, str(given.path))
        places.append(GeneratedPlace(given, key, index, where))
        places[-1].read(card)
    return places


def _load(given: Generated, card: TokenizerCard) -> tuple[np.ndarray, bool]:
    """All grids ``b lt lh lw``, and whether the file may hold more than one."""
    path = given.path
    try:
        if path.suffix == ".npy":
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            size = path.stat().st_size
            item = np.dtype(card.dtype).newbyteorder("<")
            if size % item.itemsize or not size:
                raise UsageError(f"its {size} bytes are not whole {item.name} ids")
            ids = np.memmap(path, dtype=item, mode="r")
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is not a readable file of codes: {error}") from error
    if ids.dtype.kind not in "iu":
        raise UsageError(f"{path} holds {ids.dtype}; codes are integers")
    if ids.ndim in (3, 4) and ids.size:
        if given.grid and tuple(ids.shape[-3:]) != given.grid:
            raise UsageError(f"{path} has shape {ids.shape}, --grid says {given.grid}; leave --grid away")
        return (ids, True) if ids.ndim == 4 else (ids[None], False)
    if ids.ndim != 1 or not ids.size:
        raise UsageError(f"{path} has shape {ids.shape}; codes are lt lh lw, b lt lh lw, or flat with --grid LT,LH,LW")
    if given.grid is None:
        raise UsageError(f"{path} has {ids.size} ids without a shape; give --grid LT,LH,LW")
    tokens = int(np.prod(given.grid))
    if ids.size % tokens:
        raise UsageError(f"{path} has {ids.size} ids; --grid {given.grid} needs a multiple of {tokens}")
    return ids.reshape(-1, *given.grid), ids.size > tokens


def _local(ids: np.ndarray, card: TokenizerCard, where: str) -> np.ndarray:
    """Ids of the whole vocabulary to codes of their own codebook."""
    books = [card.codebook_of(t) for t in range(ids.shape[0])]
    low = np.array([book.offset for book in books])[:, None, None]
    high = low + np.array([book.size for book in books])[:, None, None]
    bad = np.argwhere((ids < low) | (ids >= high))
    if len(bad):
        t, h, w = (int(index) for index in bad[0])
        book = books[t]
        raise UsageError(
            f"{where}: id {int(ids[t, h, w])} at t={t} h={h} w={w} is out of range; the {book.name} codebook has ids "
            f"{book.offset} to {book.offset + book.size - 1}"
        )
    return ids - low
