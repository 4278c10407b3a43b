"""What clips there are and where their bytes lie: read once, so that any of them can be had in one read."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.clip_shard import media_of, parse_clip_info
from vidvq.formats.commit import Commit, read_commit
from vidvq.formats.plan import read_plan
from vidvq.storage import is_remote, place, read_range
from vidvq.video import VideoError

_THREADS = 8


@dataclass(frozen=True)
class Place:
    """One file inside a shard: the shard's path or URL, the offset of its first byte, its length and CRC-32."""

    shard: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class ClipIndex:
    """The clips of one or more directories, in the order of their shards. All columns are as long.

    Attributes:
        shards: paths or URLs of all shards.
        keys: of the clips.
        shard: which shard each is in.
        data_set: which of the directories.
        offset, size, crc32: of its media in the shard, bytes.
        num_frames, height, width: of each.
    """

    shards: list[str]
    keys: list[str]
    shard: np.ndarray
    data_set: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray
    num_frames: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def place(self, clip: int) -> Place:
        """Where a clip's media is."""
        where = (int(column[clip]) for column in (self.offset, self.size, self.crc32))
        return Place(self.shards[int(self.shard[clip])], *where)


def read_index(folders: list[str]) -> ClipIndex:
    """Index directories that ``vidvq shard`` finished; reads every clip's JSON, once.

    Raises:
        ValueError: a directory is unfinished or damaged, or there is not one clip.
    """
    shards = [(number, *found) for number, folder in enumerate(folders) for found in _committed(place(folder))]
    rows: list[tuple[int, ...]] = []
    keys: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        per_shard = pool.map(lambda shard: _read_shard(*shard[1:]), shards)
        for index, ((number, _, _), clips) in enumerate(zip(shards, per_shard, strict=True)):
            for key, where, size in clips:
                keys.append(key)
                rows.append((index, number, where.offset, where.size, where.crc32, *size))
    if not rows:
        raise UsageError(f"data.clips={','.join(folders)} holds no clips; give directories that vidvq shard wrote")
    return ClipIndex([path for _, path, _ in shards], keys, *np.array(rows, dtype=np.int64).T)


def read_place(where: Place) -> bytes:
    """The bytes of one file in a shard.

    Raises:
        VideoError: the shard cannot be read, or the bytes are not those that were committed.
    """
    try:
        data = _read_at(where)
    except OSError as error:
        raise VideoError("unreadable", f"{where.shard} cannot be read: {error}") from error
    if crc32(data) != where.crc32:
        raise VideoError("damaged", f"{where.shard} is damaged from byte {where.offset} on; run vidvq verify")
    return data


def _committed(folder: Path) -> Iterator[tuple[str, Commit]]:
    for shard, _ in read_plan(folder).shards():
        commit = read_commit(folder, shard)
        if commit is None:
            raise UsageError(f"{folder}: {shard} is not committed; finish vidvq shard first")
        if commit.sha256:
            yield str(folder / shard), commit


def _read_shard(path: str, commit: Commit) -> list[tuple[str, Place, tuple[int, int, int]]]:
    """Key, media and ``(num_frames, height, width)`` of each clip in a shard."""
    samples: dict[str, dict[str, Place]] = {}
    for member, offset in commit.places():
        where = Place(path, offset, member.size, member.crc32)
        samples.setdefault(member.key, {})[member.name.partition(".")[2]] = where
    clips: list[tuple[str, Place, tuple[int, int, int]]] = []
    for key, files in samples.items():
        media = media_of(files, f"{path}: {key}")
        try:
            data = _read_at(files["json"])
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        if crc32(data) != files["json"].crc32:
            raise UsageError(f"{path} is damaged; run vidvq verify")
        info = parse_clip_info(data, f"{path}: {key}")
        clips.append((key, files[media], (info.num_frames, info.height, info.width)))
    return clips


def _read_at(where: Place) -> bytes:
    shard = _shard_at(where.shard, os.getpid())
    if is_remote(shard):
        return read_range(shard, where.offset, where.size)
    file = os.open(shard, os.O_RDONLY)
    try:
        return os.pread(file, where.size, where.offset)
    finally:
        os.close(file)


@lru_cache(maxsize=1024)
def _shard_at(shard: str, process: int) -> Path:
    """The shard's place; a store's client, with its threads, is of the process that made it."""
    return place(shard)
