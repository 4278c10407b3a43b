"""The pool that runs calls as Ray tasks and actors."""

# Ray's functions are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from math import inf
from time import monotonic, sleep
from typing import Any, Literal

import ray
import ray.exceptions
from ray import cloudpickle

from vidvq.errors import StoreError
from vidvq.runtime import ray_metrics
from vidvq.runtime.deaths import Deaths
from vidvq.runtime.interface import Item, Metric, Result, WorkerDied
from vidvq.runtime.isolated import call_in_child
from vidvq.runtime.ray_start import count_slots

# Calls queued in addition to the running ones, so that a worker never waits for the driver.
_QUEUED = 2
# Interval at which the GPUs of a cluster are counted again (seconds).
_COUNT_EVERY_S = 10.0
# Ray takes up to half a minute to notice that a node is lost.
_RETRY_DELAYS_S = (0.0, 5.0, 30.0)
_DEATHS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)


class RayPool:
    """Pool on Ray. It holds no Ray handles, so tasks can receive and use it. See :class:`vidvq.runtime.Pool`.

    Args:
        size: number of concurrent workers.
        workers: number of workers that is configured; None derives that of stages on GPUs from the cluster.
    """

    def __init__(self, size: int, workers: int | None = None) -> None:
        self.size, self._workers = size, workers

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        gpus: float = 0,
        retries: int = 0,
        deadline_s: float | None = None,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        # Retried here, not by Ray, which does not pause after a kill and counts it like a crash.
        task: Any = ray.remote(_call if deadline_s is None else call_in_child).options(
            name=function.__name__, num_cpus=cpus, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD"
        )

        def start(item: Item) -> Any:
            return task.remote(cloudpickle.dumps((function, item)), deadline_s)

        source = iter(items)
        window = self.size if cpus == 0 else self.size + _QUEUED
        in_flight = deque((item, start(item)) for item in islice(source, window))
        # A call with a deadline runs in a child of Ray's worker, so it cannot crash the worker.
        cause = "died" if deadline_s is None else "killed"
        while in_flight:
            item, reference = in_flight.popleft()
            deaths = Deaths(1 + retries)
            while isinstance(result := get_result(reference, cause), WorkerDied) and not deaths.give_up(result):
                reference = start(item)
            del reference
            in_flight.extend((item, start(item)) for item in islice(source, 1))
            yield item, result

    def map_stateful(
        self,
        make: Callable[[], Callable[..., Result]],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        gpus: float = 0,
        lookahead: bool = False,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        # Ray's own restarts are off: while a lost node is not known to be lost, they are spent on it within seconds.
        actor_class: Any = ray.remote(_StatefulWorker).options(
            num_cpus=0 if gpus else cpus,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        queue = _Queue(items)
        in_flight: dict[Any, tuple[Any, Item, int]] = {}
        # Items to retry: when (monotonic seconds), the item, and how often it was tried.
        delayed: list[tuple[float, Item, int]] = []

        def start(worker: Any, item: Item, tries: int) -> None:
            arguments = (item, queue.announce(worker)) if lookahead else (item,)
            in_flight[worker.call.remote(*arguments)] = (worker, item, tries)

        wanted, counted_at = self.count_workers(gpus), monotonic()
        # All workers have an item before a second one is announced to any.
        for item in [item for _ in range(wanted) for item in queue.take()]:
            start(actor_class.remote(make), item, 0)
        while in_flight or delayed:
            now = monotonic()
            if gpus and now - counted_at > _COUNT_EVERY_S:
                # The cluster may have grown.
                more, counted_at = self.count_workers(gpus) - wanted, now
                for item in [item for _ in range(more) for item in queue.take()]:
                    start(actor_class.remote(make), item, 0)
                wanted += max(more, 0)
            for entry in [entry for entry in delayed if entry[0] <= now]:
                delayed.remove(entry)
                start(actor_class.remote(make), *entry[1:])
            pause = max(min((due for due, _, _ in delayed), default=inf) - now, 0)
            if gpus:
                pause = min(pause, _COUNT_EVERY_S)
            if not in_flight:
                sleep(pause)
                continue
            done, _ = ray.wait(list(in_flight), timeout=None if pause == inf else pause)
            for ready in done:
                worker, item, tries = in_flight.pop(ready)
                result = get_result(ready)
                if isinstance(result, WorkerDied):
                    # It may be alive behind a broken connection, and would keep its resources.
                    ray.kill(worker)
                    queue.withdraw(worker)
                    if tries < len(_RETRY_DELAYS_S):
                        delayed.append((monotonic() + _RETRY_DELAYS_S[tries], item, tries + 1))
                        continue
                    worker = actor_class.remote(make)
                for following in queue.take(worker):
                    start(worker, following, 0)
                yield item, result
                # A worker without an item ends once nothing refers to it, and another may wait for its resources.
                del worker

    def count_workers(self, gpus: float) -> int:
        if not gpus:
            return max(self.size, 1)
        # Without a GPU yet, one worker waits for the cluster to add some. A number that is configured may be more than
        # fit: a cluster that scales adds nodes for the workers that wait.
        return self._workers or max(sum(count_slots(gpus).values()), 1)

    def count(self, metric: Metric, amount: float, **labels: str) -> None:
        ray_metrics.count(metric, amount, **labels)

    def gauge(self, metric: Metric, value: float, **labels: str) -> None:
        ray_metrics.gauge(metric, value, **labels)


class _Queue:
    """Items to start. A worker can be told its next item in advance."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._source = iter(items)
        self._announced: dict[Any, Any] = {}

    def take(self, worker: Any = None) -> list[Any]:
        """Take one item for a worker, the announced one if there is one; an empty list if none is left.

        At the end a free worker takes what was announced to another one, rather than wait.
        """
        if worker in self._announced:
            return [self._announced.pop(worker)]
        # The worker that was told last has most of its work before it.
        return list(islice(self._source, 1)) or ([self._announced.popitem()[1]] if self._announced else [])

    def announce(self, worker: Any) -> Any:
        """Return the next item of a worker; None if all are taken."""
        if worker not in self._announced:
            self._announced.update((worker, item) for item in islice(self._source, 1))
        return self._announced.get(worker)

    def withdraw(self, worker: Any) -> None:
        """Leave the next item of a dead worker to others."""
        if worker in self._announced:
            self._source = chain([self._announced.pop(worker)], self._source)


def _call(call: bytes, _deadline_s: None) -> Any:
    function, item = cloudpickle.loads(call)
    return function(item)


class _StatefulWorker:
    """Actor that calls the function returned by ``make``."""

    def __init__(self, make: Callable[[], Callable[..., Any]]) -> None:
        self._make = make
        self._function: Callable[..., Any] | None = None

    def call(self, *arguments: Any) -> Any:
        # Not in the constructor: Ray reports its exceptions as the death of the actor.
        if self._function is None:
            self._function = self._make()
        return self._function(*arguments)


def get_result(reference: Any, cause: Literal["died", "killed"] = "died") -> Any:
    """Wait for the result of a call.

    Args:
        cause: what the death of Ray's worker is attributed to, unless Ray reports that its memory was full.

    Returns:
        The result; :class:`WorkerDied` if Ray's worker died.

    Raises:
        Exception: the exception that the call raised.
        StoreError: Ray failed.
    """
    try:
        return ray.get(reference)
    except _DEATHS as error:
        for_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        return WorkerDied(str(error).splitlines()[0], "out_of_memory" if for_memory else cause)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            # Ray's error carries the worker's traceback in its message.
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise StoreError(f"Ray failed: {' '.join(str(error).split())}; run the same command again to resume") from error
