"""Runs generators on nodes of the Ray cluster that have a free CPU, as :class:`Feeder` does on this machine.

    this process                        actor (1 CPU)            its child process
    RayFeeder  -- start, next, ... -->  Feeder  -- request -->  function(item)
               <-- blocks of results --         <-- results --
                 through Ray's object store       through shared memory

A crash or an exceeded deadline kills the child alone: the actor reports how it ended, and starts another. The actor
itself dies if it is killed or its node is lost.
"""

# Ray's functions are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import ray

from vidvq.runtime.feeder import Feeder
from vidvq.runtime.interface import Item, Result, WorkerDied
from vidvq.runtime.ray_pool import get_result

# Blocks in flight per feeder. A block ends at this size (bytes) or this number of results, to amortize the call.
_BLOCKS = 4
_BLOCK_BYTES = 8 << 20
_BLOCK_RESULTS = 16
# Time limit of an answer from an actor that has answered before (seconds). Ray may notice a lost node later.
_ANSWER_S = 5.0


class RayFeeder:
    """A :class:`Feeder` on any node of the cluster. Call :func:`find_ready` first: it starts the actor.

    Attributes:
        started: whether the actor has answered once.
    """

    def __init__(self) -> None:
        self._actor: Any = None
        self._answer: Any = None
        self.started = False

    def feed(
        self,
        function: Callable[[Item], Iterator[Result]],
        item: Item,
        deadline_s: float | None = None,
        ahead: int = 2,
    ) -> Generator[Result | WorkerDied, None, None]:
        """See :meth:`Feeder.feed`. Arrays are read-only, and an exception is raised before the results of its block."""
        results = self._feed(function, item, deadline_s, ahead)
        # Up to the request.
        next(results)
        return results

    def _feed(
        self, function: Callable[[Any], Iterator[Any]], item: Any, deadline_s: float | None, ahead: int
    ) -> Generator[Any, None, None]:
        actor = self._actor
        blocks = deque([actor.start.remote(function, item, deadline_s, ahead)])
        blocks.extend(actor.next.remote() for _ in range(_BLOCKS - 1))
        yield None
        while True:
            # Blocks are fetched while earlier ones are consumed.
            ray.wait([*blocks], num_returns=len(blocks), timeout=0)
            block = get_result(blocks.popleft(), "killed")
            if isinstance(block, WorkerDied):
                self._stop()
                yield block
            if not block or isinstance(block, WorkerDied):
                return
            blocks.append(actor.next.remote())
            yield from block
            # The consumer may keep results; this process must not.
            del block

    def ping(self) -> Any:
        """Send the actor a ping, unless one is unanswered; starts the actor if there is none.

        Returns:
            Object reference of the answer.
        """
        if self._actor is None:
            self._actor = ray.remote(_Host).options(num_cpus=1, max_restarts=0, max_task_retries=0).remote()
            self._answer = None
        if self._answer is None:
            self._answer = self._actor.answer.remote()
        return self._answer

    def receive_answer(self) -> bool:
        """Receive the answer to the ping; False if the actor is dead."""
        answer, self._answer = self._answer, None
        self.started = not isinstance(get_result(answer), WorkerDied)
        if not self.started:
            self._stop()
        return self.started

    def _stop(self) -> None:
        # It may be alive behind a broken connection, and would keep its CPU.
        ray.kill(self._actor)
        self._actor, self.started = None, False


def find_ready(feeders: Sequence[RayFeeder], patience_s: float) -> list[RayFeeder]:
    """Return the feeders whose actors answer, and start the actors of the others.

    Actors wait for a free CPU, which a cluster may never have. Dead ones are replaced, and ready at some later call.

    Args:
        patience_s: time that actors get to start (seconds).
    """
    starting, started = ({one.ping(): one for one in feeders if one.started is state} for state in (False, True))
    ready: list[RayFeeder] = []
    for pings, timeout in ((starting, patience_s), (started, _ANSWER_S)):
        if pings:
            answers, _ = ray.wait([*pings], num_returns=len(pings), timeout=timeout)
            ready += [pings[answer] for answer in answers if pings[answer].receive_answer()]
    for one in feeders:
        if one not in ready:
            one.ping()
    return [one for one in feeders if one in ready]


class _Host:
    """Actor with a :class:`Feeder`."""

    def __init__(self) -> None:
        self._feeder = Feeder()
        self._results: Iterator[Any] = iter(())

    def answer(self) -> None:
        """Answer a ping."""

    def start(self, function: Callable[[Any], Iterator[Any]], item: Any, deadline_s: float, ahead: int) -> list[Any]:
        """Start a generator in the child process, and end the one before; returns the first block."""
        self._results = iter(())
        self._results = self._feeder.feed(function, item, deadline_s, ahead)
        return self.next()

    def next(self) -> list[Any]:
        """Return the next results; none at the end."""
        block: list[Any] = []
        size = 0
        for result in self._results:
            block.append(result)
            size += _size(result)
            if size >= _BLOCK_BYTES or len(block) == _BLOCK_RESULTS:
                break
        return block


def _size(result: Any) -> int:
    """Size of the arrays of a result (bytes)."""
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    return sum(buffer.raw().nbytes for buffer in buffers)
