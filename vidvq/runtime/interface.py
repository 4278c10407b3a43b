"""Interface of the runtime: the pool that stages map functions with, and its configuration."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BeforeValidator

from vidvq.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")
_MAX_DECODERS = 1024
_MAX_WORKERS = 100_000


def _off_in_yaml(value: Any) -> Any:
    """YAML reads ``off`` as false."""
    return "off" if value is False else value


@dataclass(frozen=True)
class RuntimeConfig:
    """Execution of a job: number of workers, Ray cluster, and share of a job that several drivers split.

    Attributes:
        workers: number of concurrent workers; None means one per CPU of the machine or cluster, or one per GPU (or
            share of one). 0 and 1 run in local processes, without Ray, as does a job that has one unit of work. With
            ``address``, 0 means the same as None.
        address: address of the Ray cluster to join (``auto`` for the one that this machine belongs to); None uses this
            machine only.
        part: ``I/N``, with I from 0: this is driver I of N drivers that share the job. It processes its own part of the
            shards first, then takes work from the end of the others' parts until all are done.
        gpus_per_worker: GPUs of one worker of a stage that runs on GPUs, and of one process of ``vidvq shard`` that
            decodes on a GPU; a fraction lets several share one.
        compile: whether networks are compiled: ``auto`` does so on GPUs, where calls are also recorded as CUDA graphs;
            ``off`` never does. Compiled networks round differently, so plans record it.
        decoders: decoding processes of a worker of ``vidvq tokenize`` (1 or more, at least one per stream); ``auto``
            starts one per stream, and after each shard as many as the encoder needs by the rates measured on it, about
            one per core at most.
        decode_on: where these processes run: ``node`` for the machine of their worker, or ``cluster`` for any node of
            the Ray cluster with free CPUs, one for each. Their frames then come through Ray's object store.
    """

    workers: int | None = None
    address: str | None = None
    part: str | None = None
    gpus_per_worker: float = 1.0
    compile: Annotated[Literal["auto", "off"], BeforeValidator(_off_in_yaml)] = "auto"
    decoders: Literal["auto"] | int = "auto"
    decode_on: Literal["node", "cluster"] = "node"

    def __post_init__(self) -> None:
        mine = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.part or "0/1")
        if not mine or int(mine[1]) >= int(mine[2]):
            raise UsageError(f"part={self.part!r} must be I/N with I from 0 to N - 1, such as 0/4")
        share = self.gpus_per_worker
        if not share > 0 or (share > 1 and share % 1):
            raise UsageError(f"gpus_per_worker={share:g} must be a fraction above 0, or a whole number")
        if self.workers is not None and not 0 <= self.workers <= _MAX_WORKERS:
            raise UsageError(f"workers={self.workers} must be from 0 (inline) to {_MAX_WORKERS}")
        if self.decoders != "auto" and not 1 <= self.decoders <= _MAX_DECODERS:
            raise UsageError(f"decoders={self.decoders} must be auto, or from 1 to {_MAX_DECODERS}")
        if self.decode_on == "cluster" and self.address is None:
            raise UsageError("decode_on=cluster needs a Ray cluster; set address=auto")

    def order(self, total: int) -> list[int]:
        """Order in which this driver processes the units of work.

        Args:
            total: number of units, at least 0.

        Returns:
            The indices 0 to ``total - 1``, own part first.
        """
        part, parts = map(int, (self.part or "0/1").split("/"))
        edges = [total * edge // parts for edge in range(parts + 1)]
        work = list(range(edges[part], edges[part + 1]))
        for other in (*range(part + 1, parts), *range(part)):
            work += reversed(range(edges[other], edges[other + 1]))
        return work


@dataclass(frozen=True)
class WorkerDied:
    """Result of a call whose worker process died on every attempt (killed, crashed or past its deadline).

    Attributes:
        message: description of the last death.
        cause: ``died`` if it crashed or ran past its deadline; ``out_of_memory`` if the system killed it for memory;
            ``killed`` if something else killed it. The last two say nothing about the item.
    """

    message: str
    cause: Literal["died", "killed", "out_of_memory"] = "died"


@dataclass(frozen=True)
class Metric:
    """A metric of a running job.

    Attributes:
        name: name of the metric, such as ``vidvq_tokenize_frames``.
        description: help text that is exported with the metric.
        labels: names of its labels.
    """

    name: str
    description: str
    labels: tuple[str, ...] = ()


class Pool(Protocol):
    """Maps functions over items with a bounded number in flight. It may be passed to the functions that it runs.

    Attributes:
        size: number of concurrent workers.
    """

    size: int

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
        """Apply a stateless function to items.

        Args:
            function: function importable by name on every worker.
            items: arguments, consumed as workers become free.
            cpus: CPUs that one call occupies; 0 for a call that only waits for other calls.
            gpus: GPUs that one call occupies, in addition; a call on Ray sees no others.
            retries: further attempts after the death of a worker. Exceptions are not retried.
            deadline_s: time limit of a call (seconds), after which its worker is killed even inside a native library;
                None for no limit.

        Yields:
            ``(item, result)`` in the order of the items.

        Raises:
            Exception: the exception that the function raised.
        """
        ...

    def map_stateful(
        self,
        make: Callable[[], Callable[..., Result]],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        gpus: float = 0,
        lookahead: bool = False,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Apply functions with expensive state to items; each worker calls ``make`` once, on first use.

        A worker that dies is restarted, and its item is retried up to three times.

        Args:
            make: function importable by name on every worker; returns the function that takes the items.
            items: arguments, consumed as workers become free.
            cpus: CPUs that one worker occupies; 0 for a worker that only waits for others. Ignored if ``gpus`` is set.
            gpus: GPUs that one worker occupies. Unless the number of workers is configured, it follows from the
                cluster's GPUs, and grows with them.
            lookahead: whether the function also takes the item after the current one (None if unknown), so that it can
                prepare it. The next call may nevertheless be for another item, if another worker was free earlier.

        Yields:
            ``(item, result)`` in order of completion.

        Raises:
            Exception: the exception that ``make`` or the function raised.
        """
        ...

    def count_workers(self, gpus: float) -> int:
        """Return the number of workers of :meth:`map_stateful` that occupy so many GPUs each (1 or more)."""
        ...

    def count(self, metric: Metric, amount: float, **labels: str) -> None:
        """Add ``amount`` to a counter. The inline pool exports no metrics."""
        ...

    def gauge(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge to ``value``. The inline pool exports no metrics."""
        ...
