"""Sources as local files. For safety, decoders open local paths only: no URLs and no names from inside a file."""

import http.client
import io
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from vidvq.corpus.download import TooSlow, call_within
from vidvq.corpus.lists import is_list, read_blob
from vidvq.corpus.public_hosts import PRIVATE, http_options
from vidvq.corpus.source import Source
from vidvq.corpus.tars import open_tar
from vidvq.errors import JobStopped
from vidvq.storage import (
    is_exhausted,
    is_full,
    is_remote,
    is_sha256,
    resolve_path,
    sha256_file,
    shared_copy,
    sweep,
    temporary_copy,
)
from vidvq.video import VideoError
from vidvq.video.limits import Limits
from vidvq.video.stream import one_line
from vidvq.watchdog import pause

_CHUNK_BYTES = 1 << 20
_HTTP = ("http://", "https://")
_TRIES = 3
_PAUSE_S = 1.0
# HTTP statuses that another try does not change: not found, gone.
_LASTING = frozenset({404, 410})
# HTTP statuses of missing, wrong or expired credentials.
_DENIED = frozenset({401, 403})
DENIED = frozenset(f"fetch_failed({status})" for status in _DENIED)
_CHANGED = "is not the file that was planned; restore it, or plan it again with --retry-failed"
# Time after the limit of a download at which the process is ended, in case it hangs in a native library (seconds).
_GRACE_S = 60.0
_swept_by = 0


@contextmanager
def local_file(source: Source, limits: Limits, allow_private: bool = False, sha256: str = "") -> Iterator[Path]:
    """Yield the file of a source, or a temporary copy if it is remote or inside a tar.

    Processes of this machine that need the same content at the same time share one copy.

    Args:
        limits: caps on the size of a copy and on the time of the download.
        allow_private: whether a URL may lead to a private, loopback or link-local address, by itself or by a redirect.
        sha256: expected SHA-256 (hex) of a copy, or of a local file of unknown version; "" skips the check.

    Raises:
        VideoError: ``missing``, ``unreadable``, ``fetch_failed``, ``fetch_failed(404)`` and the like, ``too_large``,
            ``changed_since_plan``, or the reason of an entry that cannot be read.
        OSError: the disk is full.
    """
    if source.failure:
        raise VideoError(*source.failure)
    container = _container(source, allow_private)
    if not is_remote(container):
        _refuse_changed(container, source)
        if source.offset < 0:
            if sha256 and not source.version and content_hash(container) != sha256:
                raise VideoError("changed_since_plan", _CHANGED)
            yield container
            return
    if source.size > limits.max_bytes:
        raise _too_large(limits.max_bytes)
    _sweep_once()

    def make(copy: IO[bytes]) -> None:
        try:
            call_within(limits.download_deadline_s, _fetch, container, source, copy, limits.max_bytes)
        except TooSlow as error:
            detail = f"takes over limits.download_deadline_s={limits.download_deadline_s:g} to download"
            raise VideoError("fetch_failed(too_slow)", detail) from error
        copy.flush()
        if sha256 and content_hash(Path(copy.name)) != sha256:
            raise VideoError("changed_since_plan", _CHANGED)

    with ExitStack() as stack:
        limit_s, path = limits.download_deadline_s + _GRACE_S, None
        # Without a digest, nothing says that two processes mean the same content. It is checked, because it becomes a
        # file name, and a plan may be hostile.
        if is_sha256(sha256):
            with pause(limit_s):
                path = stack.enter_context(shared_copy(sha256, make))
        if path is None:
            # The wait for the download of another process, which failed, does not count.
            with pause(limit_s):
                copy = stack.enter_context(temporary_copy())
                make(copy)
                path = Path(copy.name)
        if path.stat().st_size > limits.max_bytes:
            raise _too_large(limits.max_bytes)
        yield path


def is_denied(source: Source, allow_private: bool = False) -> bool:
    """Whether a server denies a source: the credentials are missing, wrong or expired."""
    container = _container(source, allow_private)

    def read_first() -> None:
        with _open(container, source) as file:
            file.read(1)

    try:
        call_within(_GRACE_S, read_first)
    except Exception as error:  # noqa: BLE001 (counted and named, by _failure)
        return _failure(error, container)[0].reason in DENIED
    return False


def as_video_error(error: Exception) -> VideoError:
    """Convert an error to the failure of one video, whatever a library raised on it.

    Raises:
        OSError: the disk is full or no more files can be opened, which is not the fault of the video.
        JobStopped: as given; no other video would fare better.
    """
    for cause in _causes(error):
        if is_exhausted(cause):
            # Of the built-in class, which unlike those of PyAV is the same in another process.
            raise OSError(cause.errno, cause.strerror, cause.filename) from error
    if isinstance(error, VideoError):
        return error
    if isinstance(error, JobStopped):
        raise error
    return VideoError("unexpected", f"{type(error).__name__}: {one_line(error)}")


def content_hash(path: Path) -> str:
    """Hex SHA-256 of a file.

    Raises:
        VideoError: ``unreadable``.
    """
    try:
        return sha256_file(path)
    except OSError as error:
        raise VideoError("unreadable", f"cannot be read: {error.strerror}") from error


def _container(source: Source, allow_private: bool) -> Path:
    if not source.container.startswith(_HTTP):
        return resolve_path(source.container)
    return resolve_path(source.container, **http_options(allow_private))


def _sweep_once() -> None:
    """Delete the copies of killed processes, once per process: one that replaces a killed one finds its copy."""
    global _swept_by
    if _swept_by != os.getpid():
        _swept_by = os.getpid()
        sweep()


def _refuse_changed(path: Path, source: Source) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise VideoError("missing", "is not there") from error
    except OSError as error:
        raise VideoError("unreadable", f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        # Opening a named pipe would wait for its writer.
        raise VideoError("unreadable", "is not a regular file")
    same_size = source.offset >= 0 or status.st_size == source.size
    if source.version and not (same_size and str(status.st_mtime_ns) == source.version):
        raise VideoError("changed_since_plan", _CHANGED)


def _fetch(container: Path, source: Source, copy: IO[bytes], max_bytes: int) -> None:
    for attempt in range(_TRIES):
        try:
            copy.seek(0)
            copy.truncate()
            with _open(container, source) as file:
                _copy(file, copy, source, max_bytes)
            return
        except VideoError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and is_full(error):
                raise OSError(error.errno, error.strerror, copy.name) from error
            failure, lasting = _failure(error, container)
            if lasting or attempt == _TRIES - 1:
                raise failure from error
            time.sleep(_PAUSE_S * 2**attempt)


@contextmanager
def _open(container: Path, source: Source) -> Iterator[IO[bytes]]:
    """Open where the video begins."""
    if source.offset < 0:
        with container.open("rb") as file:
            yield file
    elif is_list(container):
        column = source.member.partition(f"/{source.offset}/")[0]
        with container.open("rb") as file:
            yield io.BytesIO(read_blob(file, column, source.offset))
    else:
        with open_tar(container) as file:
            file.seek(source.offset)
            yield file


def _failure(error: Exception, container: Path) -> tuple[VideoError, bool]:
    """The failure that a failed try means, and whether another try would fail too."""
    if str(container).startswith(_HTTP):
        causes = list(_causes(error))
        if refused := next((str(cause) for cause in causes if PRIVATE in str(cause)), ""):
            address = refused.partition(f" {PRIVATE}")[0].rpartition("[")[2].rpartition(" ")[2]
            detail = f"{urlsplit(str(container)).hostname} leads to {address}, which {PRIVATE}"
            return VideoError("fetch_failed(private_address)", detail), True
        status = next((cause.status for cause in causes if isinstance(getattr(cause, "status", None), int)), None)
        if status is None and any(isinstance(getattr(cause, "os_error", cause), socket.gaierror) for cause in causes):
            detail = f"has a host that cannot be found: {urlsplit(str(container)).hostname}"
            return VideoError("fetch_failed(unknown_host)", detail), False
        if status is None and isinstance(error, FileNotFoundError) and error.__cause__ is None:
            # fsspec raises this for a 404 only.
            status = 404
        if status is not None:
            detail = f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
            return VideoError(f"fetch_failed({status})", detail), status in _LASTING
        error = cast(Exception, causes[-1])
    elif isinstance(error, FileNotFoundError):
        return VideoError("missing", "is not there"), True
    elif isinstance(error, PermissionError) and is_remote(container):
        return VideoError("fetch_failed(403)", f"the store denies access: {' '.join(str(error).split())}"), True
    elif isinstance(error, PermissionError):
        return VideoError("unreadable", "may not be read"), True
    return VideoError("fetch_failed", f"{_TRIES} tries failed: {' '.join(str(error).split())}"), False


def _causes(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__


def _too_large(max_bytes: int) -> VideoError:
    return VideoError("too_large", f"has over limits.max_bytes={max_bytes} bytes")


def _copy(file: IO[bytes], copy: IO[bytes], source: Source, max_bytes: int) -> None:
    done = 0
    wanted = source.size if source.offset >= 0 else None
    while chunk := file.read(_CHUNK_BYTES if wanted is None else min(_CHUNK_BYTES, wanted - done)):
        done += len(chunk)
        if done > max_bytes:
            raise _too_large(max_bytes)
        copy.write(chunk)
    if wanted is not None and done < wanted:
        raise VideoError("changed_since_plan", f"ends after {done} of its {wanted} bytes in the tar")
