"""One input video as it was listed."""

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vidvq.errors import UsageError
from vidvq.storage import canonical_json, is_chained, is_remote, parse_json, resolve_path
from vidvq.video import VideoError

_FAILURE = re.compile(r"!(\w+): (.*)", re.DOTALL)
_CONTAINER = re.compile(r"(.*?\.(?:tar|tar\.gz|tgz|parquet)(?:\?[^#]*)?)#(.*)", re.DOTALL | re.IGNORECASE)
# Python keeps the bytes of a name that are not UTF-8 as lone surrogates, which nothing can encode.
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Source:
    """One input video, a time range of one, or an entry that cannot be read.

    Attributes:
        uri: absolute path or URL; ``TAR#MEMBER`` for a video in a tar, ``PARQUET#COLUMN/ROW/NAME`` for one in a table.
        size: bytes; -1 if only opening it would tell.
        version: changes with the content: the modification time (ns) or an etag; "" if unknown; ``!REASON: DETAIL``
            for an entry that cannot be read.
        offset: offset in the tar (bytes), or row in the table; -1 for a separate file.
        start_s: start of the range to use, from the first frame (seconds); None for the start of the video.
        end_s: end of the range (seconds); None for the end of the video.
        carried: columns of the list to write to each clip's JSON, as canonical JSON; "" for none.
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
        """Identifier that is unique in a corpus: the uri, and the range if there is one."""
        if self.start_s is None and self.end_s is None:
            return self.uri
        return f"{self.uri}#t={'' if self.start_s is None else self.start_s},{'' if self.end_s is None else self.end_s}"

    def time_range(self) -> tuple[float, float]:
        """Start and end of the range to use, from the first frame (seconds); the end may be infinite.

        Raises:
            VideoError: ``bad_range``, or the reason of an entry that cannot be read.
        """
        if self.failure:
            # An unreadable range is stored as one that is out of bounds.
            raise VideoError(*self.failure)
        start = 0.0 if self.start_s is None else self.start_s
        end = math.inf if self.end_s is None else self.end_s
        if not 0 <= start < end:
            detail = f"has start {self.start_s} and end {self.end_s}; needs 0 <= start < end, seconds"
            raise VideoError("bad_range", detail)
        return start, end

    @property
    def failure(self) -> tuple[str, str] | None:
        """Reason and detail of an entry that cannot be read; None for a video."""
        found = _FAILURE.fullmatch(self.version)
        return (found[1], found[2]) if found else None

    @property
    def container(self) -> str:
        """Path or URL of the file that holds the video: its own, or that of its tar or table."""
        return self._parts[0]

    @property
    def member(self) -> str:
        """Name inside the container; "" for a separate file."""
        return self._parts[1]

    @property
    def _parts(self) -> tuple[str, str]:
        found = _CONTAINER.fullmatch(self.uri) if self.offset >= 0 else None
        return (found[1], found[2]) if found else (self.uri, "")


def failed_source(uri: str, reason: str, detail: str) -> Source:
    """An entry that becomes one failed item.

    Args:
        uri: name of the entry; escaped for printing.
        detail: the reason as a sentence without a subject.
    """
    return Source(shown(uri), version=f"!{reason}: {shown(detail)}")


def source_at(uri: str) -> Source:
    """The source at a path or URL as it is now; with unknown size and version if it is missing or remote without them.

    A name that is not UTF-8, or that a video in a container beside it has, gives a failed entry.

    Raises:
        UsageError: the locale has another encoding, in which names in UTF-8 are not text either.
    """
    if _NOT_TEXT.search(uri):
        if (encoding := sys.getfilesystemencoding()) != "utf-8":
            raise UsageError(
                f"{shown(uri)} cannot be read in {encoding}, the encoding of this locale; set LC_ALL=C.UTF-8 or "
                "PYTHONUTF8=1"
            )
        return failed_source(uri, "bad_name", "has a name that is not UTF-8; rename it")
    if "://" in uri and is_chained(uri):
        return failed_source(uri, "bad_name", "has :: in its name, which stands for a chain of file systems; rename it")
    path = resolve_path(uri)
    try:
        if is_remote(path):
            details: dict[str, Any] = path.fs.info(path.path)  # type: ignore[attr-defined]
            version = details.get("ETag") or details.get("etag") or details.get("LastModified") or ""
            return Source(uri, details.get("size") or -1, str(version).strip('"'))
        status = path.stat()
        if (container := _CONTAINER.fullmatch(uri)) and Path(container[1]).is_file():
            return failed_source(f"file {uri}", "bad_name", f"has the name of a video in {container[1]}; rename it")
        return Source(uri, status.st_size, str(status.st_mtime_ns))
    except OSError:
        return Source(uri)


def uri_of(path: Path) -> str:
    """The absolute path, or the URL of a remote path."""
    if is_remote(path):
        return str(path)
    absolute = os.path.normpath(path.absolute())
    if ".." not in path.parts or "\0" in absolute:
        return absolute
    # The system opens the folder above the target of a link, not the one above the link.
    real = os.path.realpath(path)
    return absolute if os.path.realpath(absolute) == real else real


def base_name(path: Path) -> str:
    """File name of a path in lower case, without the query of a URL."""
    text = str(path)
    if text.startswith(("http://", "https://")):
        text = urlsplit(text).path
    return text.rpartition("/")[2].lower()


def shown(text: str) -> str:
    r"""Text that can be stored and printed: bytes that are not UTF-8 appear as ``\xff``."""
    return _NOT_TEXT.sub(_escape, text)


def carried_json(values: Mapping[str, Any]) -> str:
    """Columns to carry as canonical JSON; "" for none. Values that JSON cannot hold are carried as text."""
    values = {name: value for name, value in values.items() if value is not None and value == value}
    if not values:
        return ""
    try:
        data = canonical_json(values)
        # As the JSON of a clip is read: not nested too deep.
        parse_json(canonical_json({"carried": values}), "the row")
        return data.decode()
    except (TypeError, ValueError, RecursionError):
        return canonical_json({name: _text(value) for name, value in values.items()}).decode()


def _text(value: Any) -> str:
    try:
        return shown(str(value))
    except RecursionError:
        return f"{type(value).__name__} nested too deep"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code & 0xFF:02x}" if code == 0 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
