"""Tars of videos, plain or compressed by gzip, read as streams."""

import gzip
import json
import re
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

from vidvq.corpus.download import open_within
from vidvq.corpus.source import Source, base_name, carried_json, failed_source, shown, source_at, uri_of
from vidvq.formats.tar import is_plain, read_headers
from vidvq.storage import is_exhausted, is_remote
from vidvq.video.limits import Limits

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Prefix of the files of a few hundred bytes that macOS puts beside each file, with its suffix.
APPLE_DOUBLE = "._"
APPLE_DOUBLES = "macOS ._ files"
_MAX_NAME_BYTES = 100
_MAX_SIDECAR_BYTES = 1 << 20
# Zeros at the end that are read, in search of another tar.
_MAX_END_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_tar(path: Path) -> bool:
    """Whether a path has the suffix of a tar."""
    return base_name(path).endswith(TAR_SUFFIXES)


@contextmanager
def open_tar(path: Path, deadline_s: float = Limits.download_deadline_s) -> Iterator[IO[bytes]]:
    """Open the content of a tar; a compressed one is decompressed as far as it is read.

    Args:
        deadline_s: time limit of each read of a remote tar (seconds).
    """
    with open_within(path, deadline_s) as file:
        if base_name(path).endswith(TAR_SUFFIXES[0]):
            yield file
            return
        with gzip.GzipFile(fileobj=file) as content:
            yield cast(IO[bytes], content)


def read_tar(
    path: Path,
    carry: Collection[str],
    suffixes: Collection[str],
    passed: Counter[str],
    deadline_s: float = Limits.download_deadline_s,
) -> Iterator[Source]:
    """Yield the videos in a WebDataset tar, and a failed entry for each member or rest that cannot be read.

    Args:
        carry: fields of ``KEY.json`` to carry, and ``txt`` for the content of ``KEY.txt``. KEY ends at the first dot
            (WebDataset's rule), or is the whole name of a video before its suffix, since titles have dots.
        passed: counts skipped members by kind.
        deadline_s: time limit of each read of a remote tar (seconds).
    """
    tar = source_at(uri_of(path))
    if tar.failure:
        yield tar
        return
    if not is_remote(path) and path.exists() and not path.is_file():
        # To open a named pipe would wait for its writer.
        yield failed_source(tar.uri, "unreadable", "is no regular file")
        return
    sample = _Sample(tar, carry, "")
    names: set[str] = set()
    try:
        with open_tar(path, deadline_s) as file:
            for info in read_headers(file):
                name = info.name.removeprefix("./")
                folder, _, base = name.rpartition("/")
                stem, _, kind = base.rpartition(".")
                suffix = f".{kind.lower()}"
                if info.isdir():
                    continue
                if (key := f"{folder}/{base.partition('.')[0]}") != sample.key:
                    yield from sample.sources()
                    sample = _Sample(tar, carry, key)
                if base.startswith(APPLE_DOUBLE):
                    passed[APPLE_DOUBLES] += 1
                elif suffix in suffixes:
                    sample.add(name, f"{folder}/{stem}", info, repeated=name in names)
                    names.add(name)
                elif kind in {"json", "txt"} and carry and is_plain(info) and info.size <= _MAX_SIDECAR_BYTES:
                    sample.read_sidecar(name, f"{folder}/{stem}", kind, file.read(info.size))
            if _goes_on(file):
                raise tarfile.ReadError("another one follows its end, as where tars were joined")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield from sample.sources()
        detail = f"is not a whole tar ({error}); what comes before is used"
        yield failed_source(tar.uri, "torn_tar", detail)
        return
    except OSError as error:
        if is_remote(path) or is_exhausted(error):
            raise
        yield from sample.sources()
        yield failed_source(tar.uri, "unreadable", f"cannot be read: {error.strerror or error}")
        return
    yield from sample.sources()


def _goes_on(file: IO[bytes]) -> bool:
    """Whether there is more than zeros after the end of a tar; readers of tars ignore it."""
    with suppress(EOFError, zlib.error, gzip.BadGzipFile):
        return any(file.read(_MAX_END_BYTES))
    return False


class _Sample:
    """Consecutive members with one key: videos, and the fields to carry with each."""

    def __init__(self, tar: Source, carry: Collection[str], key: str) -> None:
        self.key = key
        self._tar, self._carry = tar, carry
        # Videos with their names before the suffix; fields and damage of sidecars by the same.
        self._videos: list[tuple[Source, str]] = []
        self._carried: dict[str, dict[str, Any]] = defaultdict(dict)
        self._damage: dict[str, str] = {}

    def add(self, name: str, stem: str, info: tarfile.TarInfo, repeated: bool) -> None:
        uri = f"{self._tar.uri}#{name}"
        if repeated:
            # The URI keeps it apart from the earlier member.
            detail = "has the name of an earlier member; rename it in the tar"
            source = failed_source(f"{uri} at byte {info.offset}", "bad_name", detail)
        elif not is_plain(info):
            kind = f"is a link to {info.linkname}" if info.islnk() or info.issym() else "is not a regular file"
            source = failed_source(uri, "not_a_file", f"{kind} in its tar; pack the file itself")
        elif fault := _name_fault(name):
            source = failed_source(uri, "bad_name", f"{fault}; rename it in the tar")
        else:
            source = Source(uri, info.size, self._tar.version, info.offset_data)
        self._videos.append((source, stem))

    def read_sidecar(self, name: str, stem: str, kind: str, data: bytes) -> None:
        try:
            if kind == "txt":
                self._carried[stem] |= {"txt": data.decode()} if "txt" in self._carry else {}
                return
            fields = json.loads(data)
            if isinstance(fields, dict):
                self._carried[stem] |= {name: fields[name] for name in self._carry if name in fields}
        except (ValueError, RecursionError) as error:
            self._damage[stem] = (
                f"has {shown(name)} beside it, which cannot be read: {error}; repair it, or set lists.carry=[]"
            )

    def sources(self) -> Iterator[Source]:
        for source, stem in self._videos:
            damage = self._damage.get(stem) or self._damage.get(self.key)
            if damage and not source.failure:
                source = failed_source(source.uri, "bad_sidecar", damage)
            yield replace(source, carried=carried_json(self._carried[self.key] | self._carried[stem]))


def _name_fault(name: str) -> str:
    """Why the name of a member is refused; "" if it is accepted."""
    size = len(name.encode("utf-8", "surrogateescape"))
    if size > _MAX_NAME_BYTES:
        return f"has a name of {size} bytes; at most {_MAX_NAME_BYTES} are allowed"
    if shown(name) != name:
        return "has a name that is not UTF-8"
    if "\\" in name or _CONTROL.search(name):
        return "has a backslash or a control character in its name"
    if name.startswith("/") or ".." in name.split("/"):
        return "has a name that leaves the tar"
    return ""
