"""Atomic writes that never replace what another writer committed."""

import errno
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vidvq.errors import UsageError
from vidvq.storage.digests import sha256_bytes
from vidvq.storage.objects import file_exists, is_remote, put, put_once, read_file
from vidvq.storage.temporary import PREFIX, owner

# Every other driver removes leftover attempts once at its end; allow for this many at the same moment.
_SWEEPS = 20
_MAX_JSON_BYTES = 256 << 20
_MAX_JSON_DEPTH = 64
# Prefix of the files with which the nodes of a job check that they share a folder; a killed node leaves one behind.
PREFLIGHT_MARKER = ".vidvq-preflight-"
# Key of the digest that a JSON file has of its other fields.
DIGEST_KEY = "digest"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_EXHAUSTED = _FULL | {errno.EMFILE, errno.ENFILE}
# File systems without hard links differ in what they say; those in user space (FUSE) say ENOSYS.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_ATTEMPT = ".tmp."
# A write is a system call, and a tar has three per member.
_BUFFER_BYTES = 1 << 20
_DIGEST = re.compile("[0-9a-f]{64}")
# Time that another writer may take from publishing a file to creating the one that makes it count (seconds).
_OTHER_WRITER_S = 5.0
_ABSENT = object()


def canonical_json(value: Any) -> bytes:
    """JSON with one spelling per value (sorted keys, no spaces), so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def pretty_json(value: Any) -> bytes:
    """JSON for files a person opens: sorted keys, indented, a newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: the file is not JSON, too large or too deeply nested.
    """
    if not is_remote(path) and path.stat().st_size > _MAX_JSON_BYTES:
        raise UsageError(f"{path} has {path.stat().st_size} bytes; JSON files of vidvq have at most {_MAX_JSON_BYTES}")
    return parse_json(read_file(path), str(path))


def parse_json(data: bytes, where: str) -> Any:
    """Parse untrusted JSON.

    Raises:
        UsageError: the data is not JSON, too deeply nested, or has NaN, repeated keys or huge numbers.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({error}); it is damaged or was not written by vidvq") from error
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _children(outer)]:
        depth += 1
        if depth > _MAX_JSON_DEPTH:
            raise UsageError(f"{where} is nested more than {_MAX_JSON_DEPTH} levels deep; it was not written by vidvq")
    return value


def _children(value: Any) -> list[Any]:
    """Lists and mappings directly in a value."""
    values: Any = value.values() if isinstance(value, dict) else value
    return [each for each in values if isinstance(each, dict | list)] if isinstance(value, dict | list) else []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    # Python reads 1e999 as infinity, which JSON cannot express.
    if math.isinf(number := float(text)):
        raise ValueError(f"it holds {text[:40]}")
    return number


def add_digest(fields: dict[str, Any]) -> dict[str, Any]:
    """Add ``digest``, the SHA-256 of the canonical JSON of all other fields."""
    return fields | {DIGEST_KEY: sha256_bytes(canonical_json(fields))}


def check_digest(fields: dict[str, Any], where: str, remedy: str) -> None:
    """Check the ``digest`` of JSON fields; those of older versions have none.

    Raises:
        UsageError: a field was changed after the file was written.
    """
    rest = {name: value for name, value in fields.items() if name != DIGEST_KEY}
    if DIGEST_KEY in fields and fields[DIGEST_KEY] != sha256_bytes(canonical_json(rest)):
        raise UsageError(f"{where} was changed after it was written: its digest does not match; {remedy}")


def attempt_path(path: Path) -> Path:
    """A unique temporary name beside ``path``: ``NAME.tmp.HOST-PID-RANDOM``."""
    return path.with_name(f"{path.name}{_ATTEMPT}{owner()}-{secrets.token_hex(4)}")


def final_name(name: str) -> str:
    """Name of the file that a temporary file becomes; that of any other file is its own."""
    return name.partition(_ATTEMPT)[0]


@contextmanager
def attempt_file(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a temporary file for writing; on exit it is flushed to disk, to be published under its final name.

    For a path in an object store the temporary file is local. On an error it is deleted.

    Yields:
        The open file and its temporary path.
    """
    make_folder(path.parent)
    attempt = attempt_path(Path(tempfile.gettempdir(), PREFIX + path.name) if is_remote(path) else path)
    try:
        with attempt.open("xb", buffering=_BUFFER_BYTES) as file:
            yield file, attempt
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        attempt.unlink(missing_ok=True)
        if isinstance(error, OSError) and (is_full(error) or error.errno == errno.EFBIG) and not error.filename:
            # A failed write does not name its file.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 digest (hex)."""
    return _DIGEST.fullmatch(text) is not None


def is_full(error: Exception) -> bool:
    """Whether an error says that a disk, or the share of it that a user may fill, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that the machine has no more room on a disk, or no more open files to give."""
    return isinstance(error, OSError) and error.errno in _EXHAUSTED


def write_atomic(path: Path, data: bytes, private: bool = False) -> None:
    """Write a file atomically, replacing an existing one; only its owner may read it if it is ``private``."""
    if is_remote(path):
        put(data, path)
        return
    with attempt_file(path) as (file, attempt):
        if private:
            attempt.chmod(0o600)
        file.write(data)
    _replace(attempt, path)


def write_shared(path: Path, data: bytes) -> None:
    """Write a file that every driver of a job writes at its end; retry if another driver removed the temporary file."""
    for _ in range(_SWEEPS):
        with suppress(FileNotFoundError):
            write_atomic(path, data)
            return
    write_atomic(path, data)


def publish_once(attempt: Path, path: Path) -> bool:
    """Give a finished attempt its final name unless the name is taken.

    Returns:
        True if the attempt is now ``path``; False if ``path`` existed, in which case the attempt is kept.
    """
    if is_remote(path):
        if won := put_once(attempt, path):
            attempt.unlink(missing_ok=True)
        return won
    try:
        os.link(attempt, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links: checking and renaming in two steps is the best it offers.
        if path.exists():
            return False
        attempt.replace(path)
    attempt.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def publish_replace(attempt: Path, path: Path) -> None:
    """Give a finished attempt its final name, replacing an existing file."""
    if not is_remote(path):
        _replace(attempt, path)
        return
    try:
        put(attempt, path)
    finally:
        # It is outside of the output, so no later job would delete it.
        attempt.unlink(missing_ok=True)


def _replace(attempt: Path, path: Path) -> None:
    try:
        attempt.replace(path)
    except OSError as error:
        attempt.unlink(missing_ok=True)
        # Of the two names, the message gives that of the output.
        error.filename, error.filename2 = str(path), None
        raise
    sync_folder(path.parent)


@contextmanager
def unless_done(is_done: Callable[[], bool]) -> Iterator[None]:
    """End the block early where a file in it is missing because another driver has done the work.

    The driver that finishes a job first deletes the temporary files of all others, which may be writing them.

    Raises:
        FileNotFoundError: a file is missing, and the work is not done.
    """
    try:
        yield
    except FileNotFoundError:
        if not is_done():
            raise


def is_created_soon(path: Path) -> bool:
    """Whether a file exists or appears within some seconds, as that of another writer does unless it was killed."""
    deadline = time.monotonic() + _OTHER_WRITER_S
    while not (there := file_exists(path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return there


def create_once(path: Path, data: bytes, private: bool = False) -> bool:
    """Create ``path`` with ``data`` unless it exists; True if this call created it.

    Only its owner may read the file if it is ``private``.
    """
    if is_remote(path):
        return put_once(data, path)
    with unless_done(path.exists):
        with attempt_file(path) as (file, attempt):
            if private:
                attempt.chmod(0o600)
            file.write(data)
        won = publish_once(attempt, path)
        attempt.unlink(missing_ok=True)
        return won
    return False


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; does nothing in an object store, which has no folders."""
    if is_remote(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames in it survive a power loss; some file systems flush only files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def remove_attempts(folder: Path, name: str = "*", of: Container[str] | None = None) -> None:
    """Delete the temporary files and folders ``NAME.tmp.*`` of killed writers; an object store has none.

    Args:
        folder: folder that contains them.
        name: pattern of the names.
        of: names to delete those of; None for all that match the pattern.
    """
    if is_remote(folder):
        return
    for attempt in folder.glob(f"{name}.tmp.*"):
        stem = final_name(attempt.name)
        if of is not None and stem not in of:
            continue
        if attempt.is_dir() and not attempt.is_symlink():
            # Renamed first: a late writer that is still alive must not publish what is left of its folder.
            with suppress(FileNotFoundError):
                remove(attempt.rename(attempt_path(folder / stem)))
        else:
            attempt.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Delete a file, link or local folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def differences(path: str, old: Any, new: Any) -> Iterator[str]:
    """Describe each difference between two JSON values, such as ``clip.fps was 10, now 12``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}" if path else key
            there, here = old.get(key, _ABSENT), new.get(key, _ABSENT)
            # A mapping that one side lacks is shown field by field; an empty one has none to show.
            if there is _ABSENT and isinstance(here, dict) and here:
                there = {}
            elif here is _ABSENT and isinstance(there, dict) and there:
                here = {}
            yield from differences(inner, there, here)
    elif old != new:
        yield f"{path} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, str) and is_sha256(value):
        return value[:12]
    text = canonical_json(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
