"""Runs generators in a child process, some steps ahead of their consumer, without Ray.

The process exits with its parent. A crash or an exceeded deadline kills the child process alone.
"""

import os
import signal
import subprocess
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from io import FileIO
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from vidvq.runtime import shared
from vidvq.runtime.cgroup import count_oom_kills
from vidvq.runtime.interface import WorkerDied
from vidvq.runtime.pipe import receive, send
from vidvq.runtime.shared import BlockReader, BlockWriter
from vidvq.watchdog import exit_after

Item = TypeVar("Item")
Result = TypeVar("Result")
# Results that the parent has not received yet, before the child waits.
_AHEAD = 2


class _End:
    """Marks the end of a generator in the pipe."""


class _ParentGone(Exception):
    """The parent has ended, or has given this process up."""


class Feeder:
    """Runs one generator after another in a child process, which is restarted after it dies.

    A generator can be requested before the previous one has ended, and runs as soon as that one has. Results must be
    consumed in the order of the requests.
    """

    def __init__(self) -> None:
        self._running: _Running | None = None

    def release(self) -> None:
        """Leave the child process to the next feeder that needs one, unless it is in use: its libraries are loaded."""
        if self._running and not self._running.requested:
            _keep(self._running)
            self._running = None

    def feed(
        self,
        function: Callable[[Item], Iterator[Result]],
        item: Item,
        deadline_s: float | None = None,
        ahead: int = _AHEAD,
    ) -> Generator[Result | WorkerDied, None, None]:
        """Start ``function(item)`` in the child process, and yield the items of the iterator that it returns.

        The child starts at once and computes a few results ahead. Large arrays of a result are in shared memory.

        Args:
            function: function importable by name, from a module that loads fast.
            item: its argument, pickled.
            deadline_s: time limit of one step (seconds), after which the process exits even inside a native library;
                None for no limit.
            ahead: results that the consumer has not received yet, before the child waits (1 or more).

        Yields:
            The results. If the child dies, the last one is :class:`WorkerDied`.

        Raises:
            Exception: the exception that the function raised.
        """
        results = self._feed(function, item, deadline_s, ahead)
        # Up to the request.
        next(results)
        return results

    def _feed(
        self, function: Callable[[Any], Iterator[Any]], item: Any, deadline_s: float | None, ahead: int
    ) -> Generator[Any, None, None]:
        request = (function, item, deadline_s, ahead)
        self._request(request)
        ended = False
        try:
            yield None
            running = self._take_turn(request)
            try:
                while not isinstance(result := running.receive(), _End | Exception):
                    yield result
                    # The consumer may keep it; this process must not.
                    del result
            except (EOFError, BrokenPipeError, ConnectionResetError):
                death = running.death(function.__name__)
                self._stop()
                yield death
                return
            if isinstance(result, Exception):
                # Outside of the inner try: an EOFError there means a death, and the function may raise one too.
                raise result
            running.requested.popleft()
            ended = True
        finally:
            # A consumer that stops early leaves results in the pipe, so that process is not reused.
            if not ended and self._running and any(each is request for each in self._running.requested):
                self._stop()

    def _take_turn(self, request: tuple[Any, ...]) -> "_Running":
        """Return the process whose next results are those of a request."""
        if self._running and self._running.requested and self._running.requested[0] is request:
            return self._running
        # The previous generator did not end, because its process died or its consumer stopped. In the meantime, another
        # process may have received the requests after this one.
        later = [each for each in self._running.requested if each is not request] if self._running else []
        if later:
            self._stop()
        running = self._request(request)
        for each in later:
            self._request(each)
        return running

    def _request(self, request: tuple[Any, ...]) -> "_Running":
        running = self._running = self._running or _take_idle() or _Running()
        with suppress(BrokenPipeError):
            send(running.requests, request)
        running.requested.append(request)
        return running

    def _stop(self) -> None:
        if self._running:
            self._running.stop()
        self._running = None


def warm_up(module: str) -> None:
    """Start a child process that imports ``module`` in the background; the next feeder uses it."""
    _keep(_take_idle() or _Running(module))


class _Running:
    """The child process and the parent's ends of its pipes. Garbage collection of this object kills the process.

    Attributes:
        requested: requests whose generators have not ended, in order.
    """

    def __init__(self, module: str = "") -> None:
        child_in, parent_out = os.pipe()
        parent_in, child_out = os.pipe()
        permits_in, permits_out = os.pipe()
        self._oom_kills = count_oom_kills()
        memory = shared.create_file() if shared.supported() else None
        load = f"import {module}; " if module else ""
        served = f"{child_in}, {child_out}, {permits_in}, {memory}"
        command = f"{load}from vidvq.runtime.feeder import serve; serve({served})"
        # A feeder takes this child only if its own child would inherit the same environment.
        self.inherits = _inheritance()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", command],
            pass_fds=(child_in, child_out, permits_in, *([] if memory is None else [memory])),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (child_in, child_out, permits_in):
            os.close(end)
        self.requests, self.results = FileIO(parent_out, "w"), FileIO(parent_in, "r")
        self.requested: deque[tuple[Any, ...]] = deque()
        self._permits = FileIO(permits_out, "w")
        files = [self.requests, self.results, self._permits]
        self._blocks = None
        if memory is not None:
            self._blocks = BlockReader(memory)
            files.append(FileIO(memory, "r"))
        self.stop = weakref.finalize(self, _stop, self.process, *files)

    def death(self, work: str) -> WorkerDied:
        """Describe the death of the process, which closed its pipes."""
        code = self.process.wait()
        message = f"the process of {work} ended with {code}"
        # This process kills only children whose results nobody waits for.
        if code != -signal.SIGKILL:
            return WorkerDied(message)
        for_memory = self._oom_kills is not None and (count_oom_kills() or 0) > self._oom_kills
        return WorkerDied(message, "out_of_memory" if for_memory else "killed")

    def receive(self) -> Any:
        """Receive a result, and permit the child to send another."""
        result = receive(self.results, self._blocks)
        with suppress(BrokenPipeError):
            self._permits.write(b"1")
        return result


_idle: list[_Running] = []


def _take_idle() -> _Running | None:
    """Return an idle child process that inherited what a new one would; None if there is none."""
    for index, running in enumerate(_idle):
        if running.inherits == _inheritance() and running.process.poll() is None:
            return _idle.pop(index)
    return None


def _keep(running: _Running) -> None:
    """Keep this child process for the next feeder; the one kept before is stopped."""
    _idle[:] = [running]


def _inheritance() -> tuple[int, list[str], dict[str, str]]:
    return os.getpid(), list(sys.path), _environment()


def _environment() -> dict[str, str]:
    return dict(os.environ)


def _stop(process: subprocess.Popen[bytes], *pipes: FileIO) -> None:
    process.kill()
    process.wait()
    for pipe in pipes:
        pipe.close()


def serve(requests: int, results: int, permits: int, memory: int | None) -> None:
    """Run the requested generators until the parent closes the pipe.

    Args:
        requests: file descriptor to read requests from.
        results: file descriptor to write results to.
        permits: file descriptor to read a byte from for each result that the parent has received.
        memory: file descriptor of the memory for large arrays; None to write them to ``results``.
    """
    with (
        FileIO(requests, "r") as requests_in,
        FileIO(results, "w") as results_out,
        FileIO(permits, "r") as permits_in,
        suppress(EOFError, BrokenPipeError, _ParentGone),
    ):
        blocks = None if memory is None else BlockWriter(memory)
        unreceived, ahead = 0, _AHEAD

        def reply(result: Any) -> None:
            nonlocal unreceived
            # Shared memory would hold any number of results.
            while unreceived >= ahead:
                if not permits_in.read(1):
                    raise _ParentGone
                unreceived -= 1
            send(results_out, result, blocks)
            unreceived += 1

        # Read at once, because the parent does not read results while it writes a request.
        queue: SimpleQueue[Any] = SimpleQueue()
        Thread(target=_read_requests, args=(requests_in, queue), daemon=True).start()
        while True:
            request = queue.get()
            if isinstance(request, BaseException):
                raise request
            function, item, deadline_s, ahead = request
            try:
                steps = iter(function(item))
                while not isinstance(result := _step(steps, deadline_s), _End):
                    reply(result)
            except (BrokenPipeError, _ParentGone):
                raise
            except Exception as error:  # noqa: BLE001 (raised by the parent)
                error.add_note("".join(traceback.format_exception(error)))
                result = error
            reply(result)


def _read_requests(pipe: FileIO, queue: "SimpleQueue[Any]") -> None:
    try:
        while True:
            queue.put(receive(pipe))
    except BaseException as error:  # noqa: BLE001 (raised by the main thread)
        queue.put(error)


def _step(steps: Iterator[Any], deadline_s: float | None) -> Any:
    with exit_after(deadline_s):
        return next(steps, _End())
