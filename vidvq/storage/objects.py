"""Folders in an object store, by fsspec: the same names and the same guarantees as on a disk.

An object appears whole or not at all, so a write needs no attempt name of its own; what must happen once is a
conditional put (``If-None-Match: *``). A put whose answer is lost is repeated, here or inside the client, and then
finds its own object there: so whoever finds one compares it with what it was about to write.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from vidvq.errors import StoreError, UsageError

_TRIES = 4
_PAUSE_S = 0.5
_CHUNK_BYTES = 1 << 20
# What these raise is of no common kind: no credentials, an endpoint that is not there.
_LIBRARIES = {"botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure"}
_NO_SUCH = "https://filesystem-spec.readthedocs.io lists them"


def resolve_path(text: str) -> Path:
    """The file or folder that a person means: a path of this machine, or a URL such as ``s3://bucket/folder``.

    What comes back for a URL has the methods of :class:`pathlib.Path`.

    Raises:
        UsageError: the URL's scheme is unknown, its library is not installed, or it chains several (``a::b``).
    """
    scheme, sign, rest = text.partition("://")
    if not sign:
        return Path(text)
    if scheme in {"file", "local"}:
        return Path(rest)
    if "::" in text:
        raise UsageError(f"{text} chains several file systems; give a plain URL")
    if not rest:
        raise UsageError(f"{text} names nothing behind the scheme; give {scheme}://bucket/folder")
    try:
        from upath import UPath

        # A listing that was kept would hide what another writer has put there since.
        return cast(Path, UPath(text, use_listings_cache=False))
    except ImportError as error:
        raise UsageError(
            f"{text} needs a library that is not installed ({error}); run `pip install 'vidvq[remote]'`"
        ) from error
    except ValueError as error:
        raise UsageError(f"{text} has a scheme that fsspec does not know ({error}); {_NO_SUCH}") from error


def is_remote(path: Path) -> bool:
    """Whether a place is in an object store."""
    return not isinstance(path, Path)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what the libraries of object stores raise in this block into :class:`StoreError`."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] in _LIBRARIES:
            raise StoreError(f"the object store cannot be reached: {_one_line(error)}") from error
        raise


def refuse_unwritable(folder: Path) -> None:
    """Fail before any work where a job could not put its output.

    Raises:
        UsageError: the bucket does not exist.
        StoreError: it may not be written, or the store does not answer.
    """
    if not is_remote(folder):
        return
    try:
        put(b"", folder / "plan.json.tmp.write-test")
        (folder / "plan.json.tmp.write-test").unlink()
    except FileNotFoundError as error:
        raise UsageError(f"{folder} cannot be written: {_one_line(error)}") from error
    except Exception as error:
        # Stores raise what their own libraries raise: no credentials, no such endpoint.
        raise StoreError(f"{folder} cannot be written: {_one_line(error)}") from error


def put_once(data: bytes | Path, path: Path) -> bool:
    """Put a new object, from memory or from a local file, unless its name is taken.

    Returns:
        True where the object at ``path`` now holds exactly this content; False where it holds other content.

    Raises:
        OSError: the store refuses, or answers none of several tries.
    """
    return _put(data, path, "create")


def put(data: bytes | Path, path: Path) -> None:
    """Put an object, in the place of what was there."""
    _put(data, path, "overwrite")


def read_object(path: Path) -> bytes:
    """A whole object that is not empty, by one request; raises as :func:`read_range`."""
    # From 0 on: asked for no range, s3fs first asks for the size.
    return _get(path, start=0)


def read_range(path: Path, start: int, size: int) -> bytes:
    """Some bytes of an object, by one request.

    Raises:
        OSError: it is not there, or the store answers none of several tries.
    """
    return _get(path, start=start, end=start + size)


def _get(path: Path, **span: int) -> bytes:
    store, key = _store(path)
    for attempt in range(_TRIES):
        try:
            return store.cat_file(key, **span)
        except (PermissionError, FileNotFoundError):
            raise
        except Exception as error:
            # Stores raise what their own libraries raise: a connection that broke, an endpoint that is busy.
            if attempt == _TRIES - 1:
                raise StoreError(f"the object store does not answer: {_one_line(error)}") from error
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
            return _digest_of_object(path) == _digest_of(data)
        except (PermissionError, FileNotFoundError):
            raise
        except OSError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def _store(path: Path) -> tuple[Any, str]:
    place = cast(Any, path)
    return place.fs, place.path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _digest_of(data: bytes | Path) -> str:
    if not isinstance(data, Path):
        return hashlib.sha256(data).hexdigest()
    return _digest_of_object(data)


def _digest_of_object(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
