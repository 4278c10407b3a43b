"""Calls in threads, with a time limit for downloads: object-store clients wait for a server that hardly sends."""

import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing
from pathlib import Path
from typing import IO, Any, TypeVar

from vidvq.errors import StoreError
from vidvq.storage import is_remote

Result = TypeVar("Result")
_BUFFER_BYTES = 1 << 20


class TooSlow(Exception):
    """A call exceeded its time limit."""


def call_within(seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function, and stop waiting for it after ``seconds``; its thread then ends by itself, or with the process.

    Raises:
        TooSlow: it takes longer.
        Exception: the exception that the function raised.
    """
    future = in_background(lambda: function(*arguments))
    wait([future], seconds)
    if not future.done():
        raise TooSlow
    return future.result()


def in_background(function: Callable[[], Result]) -> Future[Result]:
    """Call a function in a thread, which does not keep this process from exiting."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 (raised by Future.result)
            future.set_exception(error)

    threading.Thread(target=run, name="vidvq-background", daemon=True).start()
    return future


def open_within(path: Path, seconds: float) -> IO[bytes]:
    """Open a file for reading. Opening a remote one, and each read of it, may take ``seconds``.

    Raises:
        StoreError: the server does not answer in time.
    """
    if not is_remote(path):
        return path.open("rb")
    raw = _TimedReads(path, seconds)
    return io.BufferedReader(raw, _BUFFER_BYTES)


class _TimedReads(io.RawIOBase):
    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._file: Any = self._within(path.open, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._within(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data: bytes = self._within(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            with closing(self._file):
                super().close()

    def _within(self, function: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return call_within(self._seconds, function, *arguments)
        except TooSlow as error:
            raise StoreError(
                f"{self._path} does not answer within limits.download_deadline_s={self._seconds:g}; "
                "run the same command again"
            ) from error
