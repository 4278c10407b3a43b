"""The pool on Ray."""

import faulthandler
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from typing import Any

import ray
import ray.exceptions

from vidvq.errors import UsageError
from vidvq.runtime import meter
from vidvq.runtime.pool import Item, Measure, Result, RuntimeConfig, WorkerDied

# Queued behind each running call, so that a worker never waits for the driver.
_QUEUED = 2
_KNOCK_S = 10
_DEATHS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)
# Ray puts the machine's outward address in the place of 127.0.0.1; of this one, as much loopback on Linux, it does not.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


@contextmanager
def connect(config: RuntimeConfig) -> Iterator[int]:
    """Join a Ray cluster or start a local one; yields how many workers to use."""
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    # The look at a cluster's machines connects before, and Ray drops a job's folder when it is left.
    options["ignore_reinit_error"] = bool(config.address)
    try:
        if config.address:
            _knock(config.address)
            ray.init(address=config.address, **options)
        else:
            # Without a dashboard there is no job interface that would run what it is sent. Ray opens its other ports on
            # every interface all the same, and asks for its token there.
            ray.init(num_cpus=config.workers, include_dashboard=False, _node_ip_address=_LOOPBACK, **options)
    except (OSError, RuntimeError, ValueError) as error:
        where = config.address or "on this machine"
        raise UsageError(f"Ray {where} cannot be reached: {' '.join(str(error).split())}") from error
    # Ray prints the deaths of workers to stdout, until its end, and stdout is for results alone.
    with redirect_stdout(sys.stderr):
        try:
            cpus = int(ray.cluster_resources().get("CPU", 1))
            yield min(config.workers or cpus, cpus) if config.address else config.workers or cpus
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Fail at once where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.rpartition("//")[2], int(port)), timeout=_KNOCK_S).close()


class RayPool:
    """See :class:`vidvq.runtime.pool.Pool`. Holds no handle, so it travels into tasks, which may use it in turn."""

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
        """See :meth:`vidvq.runtime.pool.Pool.map`."""
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
        self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], *, gpus: float = 0
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """See :meth:`vidvq.runtime.pool.Pool.map_stateful`."""
        count = int(ray.cluster_resources().get("GPU", 0) / gpus) if gpus else self.size
        actor = ray.remote(_Keeper).options(
            num_cpus=0 if gpus else 1, num_gpus=gpus, max_restarts=-1, max_task_retries=3, scheduling_strategy="SPREAD"
        )
        source = iter(items)
        flying: dict[Any, tuple[Any, Item]] = {}
        keepers = [actor.remote(make) for _ in range(max(count, 1))]
        for keeper, item in zip(keepers, islice(source, len(keepers)), strict=False):
            flying[keeper.call.remote(item)] = (keeper, item)
        while flying:
            (ready,), _ = ray.wait(list(flying))
            keeper, item = flying.pop(ready)
            result = _result(ready)
            for following in islice(source, 1):
                flying[keeper.call.remote(following)] = (keeper, following)
            yield item, result

    def count(self, measure: Measure, amount: float, **labels: str) -> None:
        """See :meth:`vidvq.runtime.pool.Pool.count`."""
        meter.count(measure, amount, **labels)

    def gauge(self, measure: Measure, value: float, **labels: str) -> None:
        """See :meth:`vidvq.runtime.pool.Pool.gauge`."""
        meter.gauge(measure, value, **labels)


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
    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.function = make()

    def call(self, item: Any) -> Any:
        return self.function(item)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except _DEATHS as error:
        return WorkerDied(str(error).splitlines()[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise OSError(f"Ray gave out: {' '.join(str(error).split())}") from error
