"""Listing of inputs: video files, folders, globs, lists, tars of videos and URLs, in any mix."""

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidvq.corpus.lists import ListPolicy, is_list, read_list
from vidvq.corpus.source import Source, failed_source, shown, source_at, uri_of
from vidvq.corpus.tars import APPLE_DOUBLE, APPLE_DOUBLES, TAR_SUFFIXES, is_tar, read_tar
from vidvq.errors import StoreError, UsageError
from vidvq.formats.decoded import DECODE_SETTINGS
from vidvq.log import info
from vidvq.storage import canonical_json, is_chained, is_remote, resolve_path
from vidvq.video.limits import Limits

SUFFIXES = frozenset(
    ".264 .265 .3g2 .3gp .apng .asf .avi .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2t .m2ts .m2v .m4v .mkv .mov "
    ".mp4 .mpeg .mpg .mts .mxf .nut .obu .ogg .ogv .qt .rm .rmvb .ts .vob .webm .wmv .wtv .y4m".split()
)
_SUM_BYTES = 32
_SHOWN_KINDS = 8
# Files of a folder of `vidvq shard`, `map`, `tokenize` or `generate`, and of one of `vidvq decode`.
_OUTPUT_FILES = (frozenset({"plan.json", "plan.parquet"}), frozenset({DECODE_SETTINGS}))


def list_sources(
    inputs: list[str], lists: ListPolicy, deadline_s: float = Limits.download_deadline_s
) -> Iterator[Source]:
    """Yield every source that the inputs name, in their order and without repetition.

    A folder is searched recursively for known suffixes, in the order of names. A file is a list or a tar by its
    suffix, and a video otherwise. A video that a list names may be missing; it becomes a failed item.

    Args:
        inputs: paths, globs and URLs.
        deadline_s: time limit of each read of a remote list or tar (seconds).

    Raises:
        UsageError: an input does not exist or cannot be read, or a list lacks a column.
        StoreError: an object store cannot be listed.
    """
    seen: set[bytes] = set()
    if not inputs:
        raise UsageError("there is no input; give video files or directories, globs, lists or URLs")
    for given in inputs:
        passed: Counter[str] = Counter()
        for source in _expand(given, _Reading(lists, passed, deadline_s)):
            digest = hashlib.blake2b(source.identity.encode(), digest_size=12).digest()
            if digest not in seen:
                seen.add(digest)
                yield source
            else:
                passed["repeated inputs"] += 1
        if passed:
            info(f"listed {shown(given)}{_but(passed)}")


class Fingerprint:
    """Digest of the inputs of a plan: their number, total size, and the sum of their hashes.

    The sum does not depend on the order of the inputs, and supports adding and removing them.

    Args:
        value: a value of :meth:`value` to continue from; None for no inputs.
    """

    def __init__(self, value: dict[str, Any] | None = None) -> None:
        value = value or {"count": 0, "bytes": 0, "sum": "0"}
        self._count, self._bytes, self._sum = value["count"], value["bytes"], int(value["sum"], 16)

    def add(self, source: Source, sign: int = 1) -> None:
        """Add a source, or remove it with ``sign=-1``."""
        digest = hashlib.sha256(canonical_json(asdict(source))).digest()
        self._count += sign
        self._bytes += sign * max(source.size, 0)
        self._sum = (self._sum + sign * int.from_bytes(digest)) % (1 << 8 * _SUM_BYTES)

    def value(self) -> dict[str, Any]:
        """The fingerprint as JSON types; equal for equal sets of sources."""
        return {"count": self._count, "bytes": self._bytes, "sum": f"{self._sum:064x}"}


@dataclass(frozen=True)
class _Reading:
    """How one input is read: columns of lists, counts of skipped entries, time limit of each read (seconds)."""

    lists: ListPolicy
    passed: Counter[str]
    deadline_s: float


def _expand(given: str, reading: _Reading) -> Iterator[Source]:
    path = resolve_path(given)
    try:
        if given.startswith(("http://", "https://")):
            yield from _file(path, reading, named=True)
        elif path.is_dir():
            yield from _folder(path, given, reading)
        elif path.exists():
            yield from _file(path, reading, named=True)
        elif glob.has_magic(given):
            yield from _glob(path, given, reading)
        else:
            raise UsageError(f"input {shown(given)} does not exist; give video files, folders, globs, lists or URLs")
    except ImportError as error:
        raise UsageError(f"input {given} needs a library that is not installed: {error}") from error
    except (UsageError, StoreError):
        raise
    except OSError as error:
        raise UsageError(f"input {shown(given)} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # Clients of object stores raise their own exceptions, such as for missing credentials.
        if not is_remote(path):
            raise
        raise StoreError(f"input {given} cannot be read: {' '.join(str(error).split())}") from error


def _folder(folder: Path, given: str, reading: _Reading) -> Iterator[Source]:
    empty = True
    for entry in _walk(folder, reading.passed):
        if isinstance(entry, Source):
            empty = False
            yield entry
        elif entry.name.startswith(APPLE_DOUBLE):
            reading.passed[APPLE_DOUBLES] += 1
        elif entry.suffix.lower() in SUFFIXES or is_tar(entry):
            empty = False
            yield from _file(entry, reading, named=False)
        else:
            reading.passed[entry.suffix.lower() or "without a suffix"] += 1
    if empty:
        suffixes = " ".join([*sorted(SUFFIXES), *TAR_SUFFIXES])
        raise UsageError(f"no video under {shown(given)}{_but(reading.passed)}; a folder is searched for {suffixes}")


def _glob(path: Path, given: str, reading: _Reading) -> Iterator[Source]:
    local = [] if is_remote(path) else sorted(glob.glob(given, recursive=True))  # noqa: PTH207
    found = _remote_glob(path) if is_remote(path) else [Path(name) for name in local]
    files = [file for file in found if isinstance(file, Source) or file.is_file()]
    if not files:
        raise UsageError(f"no file matches {shown(given)}; give video files, folders, globs, lists or URLs")
    for file in files:
        if isinstance(file, Source):
            yield file
        elif file.name.startswith(APPLE_DOUBLE):
            reading.passed[APPLE_DOUBLES] += 1
        else:
            yield from _file(file, reading, named=True)


def _remote_glob(path: Any) -> list[Path | Source]:
    """The objects in the order of names; a failed entry for one that no URL can name."""
    urls = [path.fs.unstrip_protocol(name) for name in sorted(path.fs.glob(path.path))]
    return [source_at(url) if is_chained(url) else resolve_path(url) for url in urls]


def _walk(folder: Path, passed: Counter[str]) -> Iterator[Path | Source]:
    """Yield the files below a folder by name, and a failed entry for each folder that cannot be read."""
    # No recursion: folders may be nested deeper than the calls of Python.
    left = [iter(_entries(folder))]
    while left:
        entry = next(left[-1], None)
        if entry is None:
            left.pop()
            continue
        try:
            below = _entries(entry) if entry.is_dir() else None
        except OSError as error:
            if is_remote(entry):
                raise
            yield failed_source(uri_of(entry), "unreadable", f"cannot be listed: {error.strerror or error}")
            continue
        if below is None:
            yield entry
        elif not is_remote(entry) and entry.is_symlink():
            passed["linked folders"] += 1
        elif any(files <= {inner.name for inner in below} for files in _OUTPUT_FILES):
            passed["output folders of vidvq"] += 1
        else:
            left.append(iter(below))


def _entries(folder: Path) -> list[Path]:
    """Entries of a folder in the order of names; in an object store followed by objects named ``FOLDER//NAME``."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    if not is_remote(folder) or all(entry.name != folder.name for entry in entries):
        return entries
    # UPath names the part between two slashes as the folder.
    store, key = folder.fs, folder.path.rstrip("/")  # type: ignore[attr-defined]
    names = set(store.ls(key, detail=False))
    below = [name for name in sorted(store.find(key)) if name.startswith(f"{key}//")]
    return [
        *(entry for entry in entries if entry.path in names),  # type: ignore[attr-defined]
        *(resolve_path(store.unstrip_protocol(name)) for name in below),
    ]


def _file(path: Path, reading: _Reading, named: bool) -> Iterator[Source]:
    if named and is_list(path):
        yield from read_list(path, reading.lists, reading.passed, reading.deadline_s)
    elif is_tar(path):
        reading.lists.refuse_where(path)
        yield from read_tar(path, reading.lists.carry, SUFFIXES, reading.passed, reading.deadline_s)
    else:
        yield source_at(uri_of(path))


def _but(passed: Counter[str]) -> str:
    """What was skipped, for a message: `` (skipped 3 .srt, 1 linked folders)``."""
    if not passed:
        return ""
    shown_kinds = [f"{count} {shown(kind)}" for kind, count in passed.most_common(_SHOWN_KINDS)]
    more = passed.total() - sum(count for _, count in passed.most_common(_SHOWN_KINDS))
    return f" (skipped {', '.join(shown_kinds)}{f', {more} others' if more else ''})"
