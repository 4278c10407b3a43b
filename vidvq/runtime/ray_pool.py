"""The pool on Ray."""

# Ray's functions are typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import faulthandler
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import ray
import ray.exceptions

from vidvq.errors import StoreError
from vidvq.runtime import ray_metrics
from vidvq.runtime.interface import Item, Measure, Result, WorkerDied

# Calls queued behind each running one, so that a worker never waits for the driver.
_QUEUED = 2
_RETRIES = 3
_DEATHS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)


class RayPool:
    """See :class:`vidvq.runtime.Pool`. It holds no handle, so it travels into tasks, which may use it in turn."""

    def __init__(self, size: int) -> None:
        self.size = size

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        retries: int = 0,
        deadline_s: float | None = None,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """See :meth:`vidvq.runtime.Pool.map`."""
        task = ray.remote(_timed).options(
            name=function.__name__, num_cpus=cpus, max_retries=retries, scheduling_strategy="SPREAD"
        )
        source = iter(items)
        window = self.size if cpus == 0 else self.size + _QUEUED
        flying = deque((item, task.remote(function, item, deadline_s)) for item in islice(source, window))
        while flying:
            item, reference = flying.popleft()
            result = _result(reference)
            del reference
            flying.extend((item, task.remote(function, item, deadline_s)) for item in islice(source, 1))
            yield item, result

    def map_stateful(
        self,
        make: Callable[[], Callable[[Item], Result]],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        gpus: float = 0,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """See :meth:`vidvq.runtime.Pool.map_stateful`."""
        count = int(ray.cluster_resources().get("GPU", 0) / gpus) if gpus else self.size
        actor: Any = ray.remote(_Keeper).options(
            num_cpus=0 if gpus else cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=_RETRIES,
            scheduling_strategy="SPREAD",
        )
        source = iter(items)
        flying: dict[Any, tuple[Any, Item]] = {}
        for item in islice(source, max(count, 1)):
            keeper = actor.remote(make)
            flying[keeper.call.remote(item)] = (keeper, item)
        while flying:
            (ready,), _ = ray.wait(list(flying))
            keeper, item = flying.pop(ready)
            result = _result(ready)
            for following in islice(source, 1):
                flying[keeper.call.remote(following)] = (keeper, following)
            yield item, result

    def count(self, measure: Measure, amount: float, **labels: str) -> None:
        """See :meth:`vidvq.runtime.Pool.count`."""
        ray_metrics.count(measure, amount, **labels)

    def gauge(self, measure: Measure, value: float, **labels: str) -> None:
        """See :meth:`vidvq.runtime.Pool.gauge`."""
        ray_metrics.gauge(measure, value, **labels)


def _timed(function: Callable[[Any], Any], item: Any, deadline_s: float | None) -> Any:
    if deadline_s is None:
        return function(item)
    # A native library that hangs may hold the GIL; faulthandler's own thread needs no GIL to end the process.
    faulthandler.dump_traceback_later(deadline_s, exit=True)
    try:
        return function(item)
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Keeper:
    """An actor around what ``make`` returns."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._function: Callable[[Any], Any] | None = None

    def call(self, item: Any) -> Any:
        # Not in the constructor, whose exceptions Ray reports as the actor's death.
        if self._function is None:
            self._function = self._make()
        return self._function(item)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except _DEATHS as error:
        return WorkerDied(str(error).splitlines()[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            # The text of Ray's error holds the worker's traceback.
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise StoreError(f"Ray failed: {' '.join(str(error).split())}; run the same command again to resume") from error
