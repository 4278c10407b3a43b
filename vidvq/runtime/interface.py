"""What stages see of the runtime: a pool that maps functions over items, and how a user sizes it."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from vidvq.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RuntimeConfig:
    """Where a job runs.

    Attributes:
        workers: number of concurrent workers; None means one per CPU of the machine or cluster. 0 and 1 run in local
            processes, without Ray, as does a job that has one unit of work.
        address: address of the Ray cluster to join (``auto`` for the one that this machine belongs to); None uses this
            machine only.
        part: ``I/N``, with I from 0: this is driver I of N drivers that share the job. It processes its own part of the
            shards first, then takes work from the end of the others' parts until all are done.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    workers: int | None = None
    address: str | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        mine = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.part or "0/1")
        if not mine or int(mine[1]) >= int(mine[2]):
            raise UsageError(f"part={self.part!r} must be I/N with I from 0 to N - 1, such as 0/4")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers={self.workers} must be 0 (inline) or more")

    def order(self, total: int) -> list[int]:
        """Indices of ``total`` units of work, in the order in which this driver takes them."""
        part, parts = map(int, (self.part or "0/1").split("/"))
        edges = [total * edge // parts for edge in range(parts + 1)]
        work = list(range(edges[part], edges[part + 1]))
        for other in (*range(part + 1, parts), *range(part)):
            work += reversed(range(edges[other], edges[other + 1]))
        return work


@dataclass(frozen=True)
class WorkerDied:
    """Takes the place of a result whose worker process died (killed, segfault, deadline) on every attempt."""

    message: str


@dataclass(frozen=True)
class Measure:
    """A metric of a running job: its name (``vidvq_tokenize_frames``), help text and label names."""

    name: str
    description: str
    labels: tuple[str, ...] = ()


class Pool(Protocol):
    """Maps functions over items with a bounded number in flight; may be passed into the functions it runs.

    Attributes:
        size: concurrent workers.
    """

    size: int

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        retries: int = 0,
        deadline_s: float | None = None,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Yield ``(item, result)`` in the order of the items.

        Args:
            function: importable by name on every worker.
            items: consumed as workers become free.
            cpus: CPUs that one call occupies; 0 for a call that only waits for others.
            retries: further attempts after a worker's death. An exception is raised here and never retried.
            deadline_s: wall time after which the worker of a call is killed, even inside a native library.
        """
        ...

    def map_stateful(
        self,
        make: Callable[[], Callable[[Item], Result]],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        gpus: float = 0,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Yield ``(item, result)``, in order of completion, from workers that each call ``make`` once, when first used.

        A worker that dies restarts and its item is retried three times. An exception is raised here.

        Args:
            make: importable by name on every worker; returns the function that takes the items.
            items: consumed as workers become free.
            cpus: CPUs that one worker occupies; 0 for one that only waits for others. Unused with ``gpus``.
            gpus: GPUs that one worker occupies; the cluster's GPUs then set how many workers there are.
        """
        ...

    def count(self, measure: Measure, amount: float, **labels: str) -> None:
        """Add to a counter that the job's observers see; inline there are none."""
        ...

    def gauge(self, measure: Measure, value: float, **labels: str) -> None:
        """Set a gauge, likewise."""
        ...
