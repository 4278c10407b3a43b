"""Index of clips by byte range, so that each clip is read with a single request."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.clip_shard import PREFIX, media_of, parse_clip_info
from vidvq.formats.commit import Commit, finished_shards
from vidvq.formats.plan import read_plan
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


def read_clip_index(folders: list[str], where: str | None = None) -> ClipIndex:
    """Index directories written by ``vidvq shard``; reads the JSON of each clip.

    Args:
        folders: paths or URLs of the directories.
        where: expression that selects clips (see :mod:`vidvq.formats.selection`); None for all.

    Raises:
        UsageError: a directory is incomplete or damaged, or no clip is selected.
    """
    shards = [(number, *found) for number, folder in enumerate(folders) for found in _committed(resolve_path(folder))]
    selections = [_open_selection(resolve_path(folder), where) for folder in folders]
    rows: list[tuple[int, ...]] = []
    keys: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        per_shard = pool.map(lambda shard: _read_shard(shard[1], shard[2], selections[shard[0]]), shards)
        for index, ((number, _, _), clips) in enumerate(zip(shards, per_shard, strict=True)):
            for key, media, size in clips:
                keys.append(key)
                rows.append((index, number, media.offset, media.size, media.crc32, *size))
    for selection in selections:
        if selection:
            selection.finish()
    if not rows and where and shards:
        raise UsageError(f"data.where={where!r} selects none of the clips in data.clips={','.join(folders)}")
    if not rows:
        raise UsageError(f"data.clips={','.join(folders)} has no clips; use directories written by vidvq shard")
    return ClipIndex([path for _, path, _ in shards], keys, *np.array(rows, dtype=np.int64).T)


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


def _open_selection(folder: Path, where: str | None) -> ClipSelection | None:
    return ClipSelection(folder, read_plan(folder), where, "data.where") if where else None


def _committed(folder: Path) -> Iterator[tuple[Path, Commit]]:
    plan = read_plan(folder)
    if plan.header.prefix != PREFIX:
        raise UsageError(f"{folder} was written by vidvq {plan.stage}; give a directory of clip shards")
    yield from finished_shards(folder, plan)


def _read_shard(
    path: Path, commit: Commit, selection: ClipSelection | None
) -> list[tuple[str, ByteRange, tuple[int, int, int]]]:
    """Return key, media range and ``(num_frames, height, width)`` of each selected clip of a shard."""
    samples: dict[str, dict[str, ByteRange]] = {}
    for member, offset in commit.member_offsets():
        file = ByteRange(path, offset, member.size, member.crc32)
        samples.setdefault(member.key, {})[member.name.partition(".")[2]] = file
    clips: list[tuple[str, ByteRange, tuple[int, int, int]]] = []
    for key, files in samples.items():
        media = media_of(files, f"{path}: {key}")
        try:
            data = _read(files["json"])
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        if crc32(data) != files["json"].crc32:
            raise UsageError(f"{path} is damaged; run vidvq verify")
        info = parse_clip_info(data, f"{path}: {key}")
        if selection and not selection.selects(key, info):
            continue
        clips.append((key, files[media], (info.num_frames, info.height, info.width)))
    return clips


def _read(file: ByteRange) -> bytes:
    return read_range(file.shard, file.offset, file.size)
