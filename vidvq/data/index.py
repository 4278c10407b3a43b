"""Index of clips by byte range, so that each clip is read with a single request."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from zlib import crc32

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.clip_shard import media_of, parse_clip_info
from vidvq.formats.commit import Commit, finished_shards
from vidvq.formats.plan import read_clip_plan
from vidvq.formats.selection import ClipSelection
from vidvq.storage import read_range, resolve_path
from vidvq.video import VideoError

_THREADS = 8


@dataclass(frozen=True)
class ByteRange:
    """One file in a shard.

    Attributes:
        shard: the shard.
        offset: offset of the file (bytes).
        size: length of the file (bytes).
        crc32: CRC-32 of the file.
    """

    shard: Path
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class ClipIndex:
    """The clips of one or more directories, in the order of their shards. All columns have one entry per clip.

    Attributes:
        shards: all shards.
        keys: clip keys.
        shard: index into ``shards``.
        dataset: index of the directory.
        offset, size: range of the clip's media in the shard (bytes).
        crc32: CRC-32 of the media.
        num_frames, height, width: size of the clip (frames, pixels).
    """

    shards: list[Path]
    keys: list[str]
    shard: np.ndarray
    dataset: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray
    num_frames: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def media_range(self, clip: int) -> ByteRange:
        """Return the byte range of the media of a clip."""
        fields = (int(column[clip]) for column in (self.offset, self.size, self.crc32))
        return ByteRange(self.shards[int(self.shard[clip])], *fields)


def read_clip_index(folders: list[str], where: str | None = None, name: str = "data.clips") -> ClipIndex:
    """Index directories written by ``vidvq shard``; reads the JSON of each clip.

    Args:
        folders: paths or URLs of the directories.
        where: expression that selects clips (see :mod:`vidvq.formats.selection`); None for all.
        name: the setting or option that the directories were given by.

    Raises:
        UsageError: a directory is incomplete or damaged, or no clip is selected.
    """
    paths = [resolve_path(folder) for folder in folders]
    plans = [read_clip_plan(path, name) for path in paths]
    found = list(zip(paths, plans, strict=True))
    selections = [ClipSelection(path, plan, where, "data.where") if where else None for path, plan in found]
    shards: list[Path] = []
    keys: list[str] = []
    columns: list[np.ndarray] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, ((path, plan), selection) in enumerate(zip(found, selections, strict=True)):
            read = partial(_read_shard, selection)
            finished = finished_shards(path, plan)
            # Records and clips of a few shards are in memory at a time, whatever the size of the corpus.
            while some := list(islice(finished, 4 * _THREADS)):
                for (shard, _), (own, files) in zip(some, pool.map(read, some), strict=True):
                    place = np.tile((len(shards), number), (len(own), 1))
                    columns.append(np.concatenate([place, files], axis=1))
                    shards.append(shard)
                    keys += own
            if selection:
                selection.finish()
    if not keys and where and shards:
        raise UsageError(f"data.where={where!r} selects none of the clips in {name}={','.join(folders)}")
    if not keys:
        raise UsageError(f"{name}={','.join(folders)} has no clips; use directories written by vidvq shard")
    return ClipIndex(shards, keys, *np.concatenate(columns).T)


def read_bytes(file: ByteRange) -> bytes:
    """Read one file of a shard.

    Raises:
        VideoError: the shard cannot be read, or its bytes do not match the CRC-32.
    """
    try:
        data = _read(file)
    except OSError as error:
        raise VideoError("unreadable", f"{file.shard} cannot be read: {error}") from error
    if crc32(data) != file.crc32:
        raise VideoError("damaged", f"{file.shard} is damaged at byte {file.offset}; run vidvq verify")
    return data


def _read_shard(selection: ClipSelection | None, shard: tuple[Path, Commit]) -> tuple[list[str], np.ndarray]:
    """Return the keys of the selected clips of a shard, and offset, size, CRC-32, frames, height and width of each."""
    path, commit = shard
    samples: dict[str, dict[str, ByteRange]] = {}
    for member, offset in commit.member_offsets():
        file = ByteRange(path, offset, member.size, member.crc32)
        samples.setdefault(member.key, {})[member.name.partition(".")[2]] = file
    keys: list[str] = []
    rows: list[tuple[int, ...]] = []
    for key, files in samples.items():
        media = files[media_of(files, f"{path}: {key}")]
        try:
            data = _read(files["json"])
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        if crc32(data) != files["json"].crc32:
            raise UsageError(f"{path} is damaged; run vidvq verify")
        info = parse_clip_info(data, f"{path}: {key}")
        if selection and not selection.selects(key, info):
            continue
        keys.append(key)
        rows.append((media.offset, media.size, media.crc32, info.num_frames, info.height, info.width))
    return keys, np.array(rows, dtype=np.int64).reshape(-1, 6)


def _read(file: ByteRange) -> bytes:
    return read_range(file.shard, file.offset, file.size)
