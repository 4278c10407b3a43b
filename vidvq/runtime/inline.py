"""The pool without Ray: everything in this process, one after another; but what may crash or hang, in one beside it."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from vidvq.runtime.feed import Feeder
from vidvq.runtime.pool import Item, Measure, Result, WorkerDied

# Calls that the other process goes through without being asked again; it is as far ahead as the pipe holds results.
_TOGETHER = 32


class InlinePool:
    """For debugging, and where Ray is not installed. A call with a deadline is one that decodes: :class:`Feeder`."""

    size = 1

    def __init__(self) -> None:
        self._feeder = Feeder()

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
        if deadline_s is None:
            yield from ((item, function(item)) for item in items)
            return
        source = iter(items)
        while some := list(islice(source, _TOGETHER)):
            yield from self._beside(function, some, retries, deadline_s)

    def _beside(
        self, function: Callable[[Item], Result], items: list[Item], retries: int, deadline_s: float
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        tries = 0
        while items:
            done = 0
            for result in self._feeder.feed(_each, (function, items), deadline_s):
                if isinstance(result, WorkerDied) and tries < retries:
                    tries += 1
                    break
                yield items[done], result
                done, tries = done + 1, 0
            items = items[done:]

    def map_stateful(
        self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], *, gpus: float = 0
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """See :meth:`vidvq.runtime.pool.Pool.map_stateful`."""
        function = make()
        for item in items:
            yield item, function(item)

    def count(self, measure: Measure, amount: float, **labels: str) -> None:
        """See :meth:`vidvq.runtime.pool.Pool.count`."""

    def gauge(self, measure: Measure, value: float, **labels: str) -> None:
        """See :meth:`vidvq.runtime.pool.Pool.gauge`."""


def _each(call: tuple[Callable[[Item], Result], list[Item]]) -> Iterator[Result]:
    function, items = call
    yield from map(function, items)
