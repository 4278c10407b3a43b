"""Generators that run in a child process, one step ahead of their consumer; no Ray needed.

The process exits with its parent; a crash or deadline kills only the process.
"""

import faulthandler
import os
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from io import FileIO
from typing import Any, TypeVar

from vidvq.runtime.interface import WorkerDied
from vidvq.runtime.pipe import receive, send

Item = TypeVar("Item")
Result = TypeVar("Result")


class _End:
    """Marks the end of a generator in the pipe."""


class Feeder:
    """Runs one generator after another in a child process, which restarts after a death."""

    def __init__(self) -> None:
        self._running: _Running | None = None

    def release(self) -> None:
        """Leave the child process to the next feeder that needs one: it has loaded its libraries already."""
        if self._running:
            _idle.append(self._running)
            self._running = None

    def feed(
        self, function: Callable[[Item], Iterator[Result]], item: Item, deadline_s: float | None = None
    ) -> Generator[Result | WorkerDied, None, None]:
        """Yield what ``function(item)`` yields in the child; after its death, :class:`WorkerDied` and no more.

        The child computes one result ahead: the pipe holds no more.

        Args:
            function: importable by name, from a module that loads fast.
            item: sent to the process.
            deadline_s: wall time of one step after which the process exits, even inside a native library.

        Raises:
            Exception: what the function raised.
        """
        running = self._running or _take_idle() or _Running()
        # A consumer that stops early leaves results in the pipe: that process is not used again.
        self._running = None
        try:
            try:
                send(running.orders, (function, item, deadline_s))
                while not isinstance(result := receive(running.results), _End | Exception):
                    yield result
            except (EOFError, BrokenPipeError, ConnectionResetError):
                yield WorkerDied(f"the process of {function.__name__} ended with {running.process.wait()}")
                return
            if isinstance(result, Exception):
                # Not where a death is told by its EOFError: the function may raise one too.
                raise result
            self._running = running
        finally:
            if self._running is not running:
                running.stop()


def start_ahead(module: str) -> None:
    """Start a child process that loads a module while this process does something else; the next feeder takes it."""
    _idle.append(_Running(module))


class _Running:
    """The child process and our ends of its pipes. It is killed when this object is collected."""

    def __init__(self, module: str = "") -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        load = f"import {module}; " if module else ""
        command = f"{load}from vidvq.runtime.feeder import serve; serve({theirs_in}, {theirs_out})"
        # What the child inherits: a feeder that would start another child must not be given this one.
        self.inherits = _inheritance()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", command],
            pass_fds=(theirs_in, theirs_out),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.orders, self.results = FileIO(ours_out, "w"), FileIO(ours_in, "r")
        self.stop = weakref.finalize(self, _stop, self.process, self.orders, self.results)


_idle: list[_Running] = []


def _take_idle() -> _Running | None:
    """An idle child process like the one that would be started now."""
    for index, running in enumerate(_idle):
        if running.inherits == _inheritance() and running.process.poll() is None:
            return _idle.pop(index)
    return None


def _inheritance() -> tuple[int, list[str], str | None]:
    return os.getpid(), list(sys.path), os.environ.get("TMPDIR")


def _stop(process: subprocess.Popen[bytes], *pipes: FileIO) -> None:
    process.kill()
    process.wait()
    for pipe in pipes:
        pipe.close()


def serve(orders: int, results: int) -> None:
    """Run the generators that arrive on one file descriptor, and send what they yield to the other."""
    with (
        FileIO(orders, "r") as orders_in,
        FileIO(results, "w") as results_out,
        suppress(EOFError, BrokenPipeError),
    ):
        while True:
            function, item, deadline_s = receive(orders_in)
            try:
                steps = iter(function(item))
                while not isinstance(result := _step(steps, deadline_s), _End):
                    send(results_out, result)
            except BrokenPipeError:
                raise
            except Exception as error:  # noqa: BLE001 (raised by the parent)
                error.add_note("".join(traceback.format_exception(error)))
                result = error
            send(results_out, result)


def _step(steps: Iterator[Any], deadline_s: float | None) -> Any:
    if deadline_s is not None:
        # A native library that hangs may hold the GIL; faulthandler's own thread needs none to end the process.
        faulthandler.dump_traceback_later(deadline_s, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        return next(steps, _End())
    finally:
        faulthandler.cancel_dump_traceback_later()
