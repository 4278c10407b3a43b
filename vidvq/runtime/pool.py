"""A pool that maps functions over items: the one interface that stages see, inline or on Ray."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from vidvq.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RuntimeConfig:
    """Where a job runs.

    Attributes:
        workers: how many at a time; None for one per CPU of the machine or cluster; 0 runs inline, without Ray.
        address: of a Ray cluster to join (``auto`` for the one this machine belongs to); None starts a local one.
        part: ``I/N``, I from 0: this is one of N drivers of the same job, each on machines of its own. It begins with
            its own N-th of the shards, then helps with the others' from their ends, until all is there.
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
        """In which order this driver comes to ``total`` units of work, by their indices."""
        part, parts = map(int, (self.part or "0/1").split("/"))
        edges = [total * edge // parts for edge in range(parts + 1)]
        work = list(range(edges[part], edges[part + 1]))
        for other in (*range(part + 1, parts), *range(part)):
            work += reversed(range(edges[other], edges[other + 1]))
        return work


@dataclass(frozen=True)
class WorkerDied:
    """Stands in for a result where the worker process died (killed, segfault, deadline) as often as it was tried."""

    message: str


@dataclass(frozen=True)
class Measure:
    """A figure of a running job: ``vidvq_tokenize_frames``, what it is, and the names of its labels."""

    name: str
    description: str
    labels: tuple[str, ...] = ()


class Pool(Protocol):
    """Maps functions over items with a bounded number in flight; may be passed into the functions it runs."""

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
            items: consumed as room comes free.
            cpus: that one call occupies; 0 for a call that only waits for others.
            retries: how often a call is repeated after its worker died. An exception is never retried, it is raised.
            deadline_s: wall time after which a call's worker is ended from outside Python, hung or not.
        """
        ...

    def map_stateful(
        self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], *, gpus: float = 0
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Yield ``(item, result)`` as they come from workers that each call ``make`` once and keep what it returns.

        A worker that dies is started again and its item repeated.
        """
        ...

    def count(self, measure: Measure, amount: float, **labels: str) -> None:
        """Add to a figure that whoever watches the job sees grow; inline nobody does."""
        ...

    def gauge(self, measure: Measure, value: float, **labels: str) -> None:
        """Tell such a figure as it is now."""
        ...


@contextmanager
def start(config: RuntimeConfig) -> Iterator[Pool]:
    """Open the pool that a config asks for, and close it.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached.
    """
    if config.workers == 0:
        from vidvq.runtime.inline import InlinePool

        yield InlinePool()
        return
    try:
        # The job of a corpus must not reach out of the cluster it runs on.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from vidvq.runtime.on_ray import RayPool, connect
    except ImportError as error:
        raise UsageError(
            "Ray is not installed; run `pip install 'vidvq[ray]'`, or give workers=0 to run inline"
        ) from error
    with connect(config) as size:
        yield RayPool(size)
