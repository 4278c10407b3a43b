"""Folders in an object store through fsspec, with the names and guarantees of a disk.

Puts are atomic, so a write needs no temporary object. Create-once is a conditional put (``If-None-Match: *``). A put
whose response is lost is retried, here or in the client, and then finds its own object; therefore an existing object
is compared with the data to write.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, cast

from vidvq.errors import StoreError, UsageError
from vidvq.storage.digests import sha256_bytes, sha256_file

_IPV6 = re.compile(r"(\w+://(?:[^/@\s]*@)?\[)([0-9a-f:.]+)(?=\])", re.IGNORECASE)
_TRIES = 4
_PAUSE_S = 0.5
# These libraries share no exception type for missing credentials or an unreachable endpoint.
_LIBRARIES = {"botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "httpx", "httpx2"}
_SCHEMES = "see https://filesystem-spec.readthedocs.io for the list"


def resolve_path(text: str | Path, **options: Any) -> Path:
    """Resolve a local path or a URL such as ``s3://bucket/folder``.

    Args:
        text: the path or URL; what this function returned is returned as it is.
        options: options of its file system.

    Returns:
        A :class:`pathlib.Path`, or for a URL an object with the same methods.

    Raises:
        UsageError: it is neither a text nor a path, the URL's scheme is unknown, its library is not installed, or it
            chains several (``a::b``).
    """
    if not isinstance(text, str):
        # Paths of object stores are of a class of their own, imported where there is one.
        if not hasattr(text, "joinpath"):
            raise UsageError(f"a path is a {type(text).__name__}; give it as text, as a URL or as a pathlib.Path")
        return text
    scheme, sign, rest = text.partition("://")
    if not sign:
        return Path(text)
    if scheme in {"file", "local"}:
        return Path(rest)
    text = _without_double_colon(text)
    if "::" in text:
        raise UsageError(f"{text} chains file systems; give a plain URL")
    if not rest:
        raise UsageError(f"{text} has no bucket; give {scheme}://bucket/folder")
    try:
        from fsspec import get_filesystem_class
        from upath import UPath

        # Its library would otherwise be imported at the first request.
        get_filesystem_class(scheme)
        # A cached listing would hide objects that other writers have put since.
        return cast(Path, UPath(text, use_listings_cache=False, **options))
    except ImportError as error:
        raise UsageError(
            f"{text} needs a library that is not installed ({error}); run `pip install 'vidvq[remote]'`"
        ) from error
    except ValueError as error:
        raise UsageError(f"{text} has a scheme that fsspec does not know ({error}); {_SCHEMES}") from error


def require_file(name: str | Path, kind: str) -> Path:
    """Resolve the name of a file that must exist; that of an object is found out when it is read.

    Args:
        name: path or URL.
        kind: what the file is, for the message.

    Raises:
        UsageError: there is no such file; see also :func:`resolve_path`.
    """
    path = resolve_path(name)
    if not is_remote(path) and not path.is_file():
        raise UsageError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a {kind}")
    return path


def is_chained(url: str) -> bool:
    """Whether fsspec takes a URL for a chain of file systems (``a::b``)."""
    return "::" in _without_double_colon(url)


def _without_double_colon(url: str) -> str:
    """The URL with all groups of an IPv6 address: fsspec splits ``http://[::1]/`` at the colons."""
    found = _IPV6.match(url)
    if not found:
        return url
    try:
        return found[1] + IPv6Address(found[2]).exploded + url[found.end() :]
    except ValueError:
        return url


def is_remote(path: Path) -> bool:
    """Whether a path is in an object store."""
    return not isinstance(path, Path)


@contextmanager
def store_errors() -> Iterator[None]:
    """Convert exceptions of object-store libraries in this block to :class:`StoreError`."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] in _LIBRARIES:
            raise StoreError(f"the object store cannot be reached: {_one_line(error)}") from error
        raise


def check_writable(folder: Path) -> None:
    """Check with a test object that an output folder is writable; does nothing on a disk.

    Raises:
        UsageError: the bucket does not exist.
        StoreError: the bucket is not writable, or the store does not respond.
    """
    if not is_remote(folder):
        return
    try:
        put(b"", test := folder / "plan.json.tmp.write-test")
    except FileNotFoundError as error:
        raise UsageError(f"{folder} cannot be written: {_one_line(error)}") from error
    except Exception as error:
        # Each store raises exceptions of its own library, such as for missing credentials.
        raise StoreError(f"{folder} cannot be written: {_one_line(error)}") from error
    # Another driver may have deleted it.
    with suppress(FileNotFoundError):
        test.unlink()


def put_once(data: bytes | Path, path: Path) -> bool:
    """Put an object, from memory or from a local file, unless its name is taken.

    Returns:
        True if the object at ``path`` now holds exactly this content; False if it holds other content.

    Raises:
        OSError: the store refuses, or all retries failed.
    """
    return _put(data, path, "create")


def put(data: bytes | Path, path: Path) -> None:
    """Put an object, replacing an existing one."""
    _put(data, path, "overwrite")


def read_file(path: Path) -> bytes:
    """Read a whole file, or an object with one request unless it is empty; raises what :func:`read_range` raises."""
    # An open range from 0: without a range, s3fs first requests the size.
    return _get(path, start=0) if is_remote(path) else path.read_bytes()


def read_range(path: Path, start: int, size: int) -> bytes:
    """Read a byte range of a file, or of an object with one request.

    Args:
        start: offset of the first byte.
        size: number of bytes.

    Raises:
        OSError: the file or the object does not exist.
        StoreError: all retries failed.
    """
    if is_remote(path):
        return _get(path, start=start, end=start + size)
    # A buffer would be filled with a block of the file system, which may have megabytes.
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        parts: list[bytes] = []
        # A system call reads at most 2 GiB.
        while size > 0 and (part := file.read(size)):
            parts.append(part)
            size -= len(part)
    return b"".join(parts)


def file_exists(path: Path) -> bool:
    """Whether a path is a file on a disk, or an object in a store.

    Unlike ``path.is_file()``, which takes an object of a store that does not respond for a missing one.

    Raises:
        OSError: the store refuses.
        StoreError: all retries failed.
    """
    if not is_remote(path):
        return path.is_file()
    store, key = _store(path)
    try:
        return _retry(lambda: store.info(key))["type"] == "file"
    except FileNotFoundError:
        return False


def _get(path: Path, start: int, **end: int) -> bytes:
    store, key = _store(path)

    def request() -> bytes:
        try:
            return store.cat_file(key, start=start, **end)
        except OSError as error:
            # A store refuses a range that begins at the end of the object or after it.
            if error.errno == errno.EINVAL and store.info(key)["size"] <= start:
                return b""
            raise

    return _retry(request)


def _retry(request: Callable[[], Any]) -> Any:
    for attempt in range(_TRIES):
        try:
            return request()
        except (PermissionError, FileNotFoundError):
            raise
        except Exception as error:
            # Each store raises exceptions of its own library, such as for a broken connection.
            if attempt == _TRIES - 1:
                raise StoreError(f"the object store does not respond: {_one_line(error)}") from error
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def _put(data: bytes | Path, path: Path, mode: str) -> bool:
    store, key = _store(path)
    for attempt in range(_TRIES):
        try:
            if isinstance(data, Path):
                store.put_file(str(data), key, mode=mode)
            else:
                store.pipe_file(key, data, mode=mode)
            return True
        except FileExistsError:
            return _holds(path, data)
        except PermissionError:
            raise
        except OSError as error:
            if attempt < _TRIES - 1 and not isinstance(error, FileNotFoundError) and error.errno != errno.EINVAL:
                time.sleep(_PAUSE_S * 2**attempt)
                continue
            # Not every store says that a name is taken as S3 does. An upload in parts whose last response was lost is
            # unknown to the store when it is completed again.
            if not file_exists(path) or not ((same := _holds(path, data)) or mode == "create"):
                raise
            return same
    raise AssertionError("unreachable")


def _holds(path: Path, data: bytes | Path) -> bool:
    """Whether an object has this content."""
    return sha256_file(path) == (sha256_file(data) if isinstance(data, Path) else sha256_bytes(data))


def _store(path: Path) -> tuple[Any, str]:
    remote = cast(Any, path)
    store = remote.fs
    if getattr(store, "_pid", os.getpid()) != os.getpid():
        # The threads of a client do not survive a fork. fsspec keeps the new client for this process.
        store = type(store)(*store.storage_args, **store.storage_options)
    return store, remote.path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
