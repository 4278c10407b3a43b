"""A source as a local file, since decoders are given nothing else: no URL, no bytes, no name from outside."""

import errno
import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vidvq.corpus.inputs import Source
from vidvq.storage import is_remote, place
from vidvq.video import VideoError

_CHUNK_BYTES = 1 << 20
_TRIES = 3
_PAUSE_S = 1.0
_CHANGED = "is not the file that was planned; restore it, or shard it anew"


@contextmanager
def local_file(source: Source, max_bytes: int, sha256: str = "") -> Iterator[Path]:
    """The source's own file where it has one on this machine, else a temporary copy of it.

    Args:
        source: as it was listed.
        max_bytes: a copy may have.
        sha256: in hex, that a copy must have, and a file whose version is unknown; "" for any.

    Raises:
        VideoError: ``missing``, ``unreadable``, ``fetch_failed``, ``too_large`` or ``changed_since_plan``.
        OSError: the disk is full.
    """
    container = place(source.uri.rpartition("#")[0] if source.offset >= 0 else source.uri)
    if not is_remote(container):
        _refuse_changed(container, source)
        if source.offset < 0:
            if sha256 and not source.version and content_hash(container) != sha256:
                raise VideoError("changed_since_plan", _CHANGED)
            yield container
            return
    with tempfile.NamedTemporaryFile(prefix="vidvq-") as copy:
        _fetch(container, source, copy, max_bytes)
        copy.flush()
        if sha256 and content_hash(Path(copy.name)) != sha256:
            raise VideoError("changed_since_plan", _CHANGED)
        yield Path(copy.name)


def as_video_error(error: Exception) -> VideoError:
    """What an error means for the one video at hand: whatever a hostile file makes a library raise costs it alone.

    Raises:
        OSError: the error itself, where it is the disk that is full: that is no fault of a video.
    """
    if isinstance(error, VideoError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise error
    return VideoError("unexpected", f"{type(error).__name__}: {' '.join(str(error).split())}")


def content_hash(path: Path) -> str:
    """Hex SHA-256 of a file.

    Raises:
        VideoError: ``unreadable``.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise VideoError("unreadable", f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _refuse_changed(path: Path, source: Source) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise VideoError("missing", "is not there") from error
    except OSError as error:
        raise VideoError("unreadable", f"cannot be opened: {error.strerror}") from error
    same_size = source.offset >= 0 or status.st_size == source.size
    if source.version and not (same_size and str(status.st_mtime_ns) == source.version):
        raise VideoError("changed_since_plan", _CHANGED)


def _fetch(container: Path, source: Source, copy: IO[bytes], max_bytes: int) -> None:
    for attempt in range(_TRIES):
        try:
            copy.seek(0)
            copy.truncate()
            with container.open("rb") as file:
                if source.offset >= 0:
                    file.seek(source.offset)
                _copy(file, copy, source, max_bytes)
            return
        except VideoError:
            raise
        except FileNotFoundError as error:
            raise VideoError("missing", "is not there") from error
        except PermissionError as error:
            raise VideoError("unreadable", "may not be read") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise OSError(error.errno, error.strerror, copy.name) from error
            if attempt == _TRIES - 1:
                raise VideoError("fetch_failed", f"{_TRIES} tries failed: {' '.join(str(error).split())}") from error
            time.sleep(_PAUSE_S * 2**attempt)


def _copy(file: IO[bytes], copy: IO[bytes], source: Source, max_bytes: int) -> None:
    done = 0
    wanted = source.size if source.offset >= 0 else None
    while chunk := file.read(_CHUNK_BYTES if wanted is None else min(_CHUNK_BYTES, wanted - done)):
        done += len(chunk)
        if done > max_bytes:
            raise VideoError("too_large", f"has over limits.max_bytes={max_bytes} bytes")
        copy.write(chunk)
    if wanted is not None and done < wanted:
        raise VideoError("changed_since_plan", f"ends after {done} of its {wanted} bytes in the tar")
