"""Which videos the user means: files, folders, globs, lists, tars of videos, URLs, in any mix."""

import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidvq.corpus.lists import LIST_SUFFIXES, Line, ListPolicy, read_list, read_tar_list
from vidvq.errors import StoreError, UsageError
from vidvq.storage import canonical_json, is_remote, place

SUFFIXES = frozenset(
    ".264 .265 .3g2 .3gp .apng .asf .avi .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2t .m2ts .m2v .m4v .mkv .mov "
    ".mp4 .mpeg .mpg .mts .mxf .nut .obu .ogg .ogv .qt .rm .rmvb .ts .vob .webm .wmv .wtv .y4m".split()
)
_TAR = ".tar"
_SUM_BYTES = 32


@dataclass(frozen=True, slots=True)
class Source:
    """One input video, or a stretch of one.

    Attributes:
        uri: absolute path or URL; of a video in a tar, ``TAR#MEMBER``.
        size: bytes, or -1 where only opening it would tell.
        version: changes when its content does: the time of last change in nanoseconds, or an etag; "" as for size.
        offset: where in the tar it begins, or -1 for a file of its own.
        start_s, end_s: the stretch to use, in seconds from the first frame; None for all.
        carried: columns of the list to write beside each clip, as canonical JSON; "" for none.
    """

    uri: str
    size: int = -1
    version: str = ""
    offset: int = -1
    start_s: float | None = None
    end_s: float | None = None
    carried: str = ""

    @property
    def identity(self) -> str:
        """What tells it from every other source: the uri, and the stretch where there is one."""
        if self.start_s is None and self.end_s is None:
            return self.uri
        return f"{self.uri}#t={'' if self.start_s is None else self.start_s},{'' if self.end_s is None else self.end_s}"


def list_sources(inputs: list[str], lists: ListPolicy) -> Iterator[Source]:
    """Every video that the inputs name, in their order, each once; the videos of a folder by name.

    A folder counts with all below it, by suffix; a file counts as a list or a tar by its suffix, else as a video
    whatever its name. A line of a list is taken as it is: what it names may be missing, and is then a failed item.

    Raises:
        ValueError: an input does not exist or cannot be read, or a list lacks a column.
    """
    seen: set[bytes] = set()
    if not inputs:
        raise UsageError("there is no input; give video files or directories, globs, lists or URLs")
    for given in inputs:
        for source in _expand(given, lists):
            digest = hashlib.blake2b(source.identity.encode(), digest_size=12).digest()
            if digest not in seen:
                seen.add(digest)
                yield source


class Fingerprint:
    """What a plan keeps of its inputs: how many, how many bytes, and a sum of one hash for each.

    The sum does not depend on their order, and inputs can be added and taken away.
    """

    def __init__(self, value: dict[str, Any] | None = None) -> None:
        value = value or {"count": 0, "bytes": 0, "sum": "0"}
        self._count, self._bytes, self._sum = value["count"], value["bytes"], int(value["sum"], 16)

    def add(self, source: Source, sign: int = 1) -> None:
        """Count a source in, or out with ``sign=-1``."""
        digest = hashlib.sha256(canonical_json(asdict(source))).digest()
        self._count += sign
        self._bytes += sign * max(source.size, 0)
        self._sum = (self._sum + sign * int.from_bytes(digest)) % (1 << 8 * _SUM_BYTES)

    def value(self) -> dict[str, Any]:
        """JSON types; equal for equal sets of sources."""
        return {"count": self._count, "bytes": self._bytes, "sum": f"{self._sum:064x}"}


def _expand(given: str, lists: ListPolicy) -> Iterator[Source]:
    path = place(given)
    try:
        if given.startswith(("http://", "https://")):
            yield from _file(path, lists, told=True)
        elif path.is_dir():
            yield from _folder(path, given, lists)
        elif path.exists():
            yield from _file(path, lists, told=True)
        elif glob.has_magic(given):
            yield from _glob(path, given, lists)
        else:
            raise UsageError(f"input {given} does not exist; give video files, folders, globs, lists or URLs")
    except ImportError as error:
        raise UsageError(f"input {given} needs a library that is not installed: {error}") from error
    except (UsageError, StoreError):
        raise
    except OSError as error:
        raise UsageError(f"input {given} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # Stores raise what their own libraries raise: no credentials, no such endpoint.
        if not is_remote(path):
            raise
        raise StoreError(f"input {given} cannot be read: {' '.join(str(error).split())}") from error


def _folder(folder: Path, given: str, lists: ListPolicy) -> Iterator[Source]:
    empty = True
    for path in _walk(folder):
        if path.suffix.lower() in SUFFIXES or path.suffix.lower() == _TAR:
            empty = False
            yield from _file(path, lists, told=False)
    if empty:
        raise UsageError(f"no video under {given}; a folder is searched for {' '.join(sorted(SUFFIXES))} {_TAR}")


def _glob(path: Path, given: str, lists: ListPolicy) -> Iterator[Source]:
    found = _remote_glob(path) if is_remote(path) else [Path(name) for name in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207
    files = [file for file in found if file.is_file()]
    if not files:
        raise UsageError(f"no file matches {given}")
    for file in files:
        yield from _file(file, lists, told=True)


def _remote_glob(path: Any) -> list[Path]:
    return [place(path.fs.unstrip_protocol(name)) for name in sorted(path.fs.glob(path.path))]


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            if is_remote(entry) or not entry.is_symlink():
                yield from _walk(entry)
        else:
            yield entry


def _file(path: Path, lists: ListPolicy, told: bool) -> Iterator[Source]:
    suffix = path.suffix.lower()
    if told and suffix in LIST_SUFFIXES:
        for line in read_list(path, lists):
            yield _line(line, path)
    elif suffix == _TAR:
        tar = source_at(_uri(path))
        for member in read_tar_list(path, lists, SUFFIXES):
            yield Source(
                uri=f"{tar.uri}#{member.uri}",
                size=member.size,
                version=tar.version,
                offset=member.offset,
                carried=member.carried,
            )
    else:
        yield source_at(_uri(path))


def _line(line: Line, path: Path) -> Source:
    uri = line.uri
    if "://" not in uri:
        # A list travels with its videos: what is relative in it is relative to it.
        uri = _uri(path.parent / uri)
    found = source_at(uri) if "://" not in uri else Source(uri)
    return Source(found.uri, found.size, found.version, -1, line.start_s, line.end_s, line.carried)


def source_at(uri: str) -> Source:
    """The source at a path or URL as it is now; of unknown size and version where it is not there or does not tell."""
    path = place(uri)
    try:
        if is_remote(path):
            details: dict[str, Any] = path.fs.info(path.path)  # type: ignore[attr-defined]
            version = details.get("ETag") or details.get("etag") or details.get("LastModified") or ""
            return Source(uri, details.get("size") or -1, str(version).strip('"'))
        status = path.stat()
        return Source(uri, status.st_size, str(status.st_mtime_ns))
    except (OSError, ValueError):
        # ValueError: a null byte in the name.
        return Source(uri)


def _uri(path: Path) -> str:
    return str(path) if is_remote(path) else os.path.normpath(path.absolute())
