"""The pool without Ray: calls run in this process, one at a time; those that may crash or hang, in a child process."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from vidvq.runtime.feeder import Feeder
from vidvq.runtime.interface import Item, Measure, Result, WorkerDied

# Calls in one request to the child, which runs ahead as far as the pipe holds results.
_TOGETHER = 32


class InlinePool:
    """For little work, for debugging, and where Ray is not installed. Calls with a deadline run in a child process."""

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
        """See :meth:`vidvq.runtime.Pool.map`."""
        if deadline_s is None:
            yield from ((item, function(item)) for item in items)
            return
        source = iter(items)
        while some := list(islice(source, _TOGETHER)):
            yield from self._in_child(function, some, retries, deadline_s)
        self._feeder.release()

    def _in_child(
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
        self,
        make: Callable[[], Callable[[Item], Result]],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        gpus: float = 0,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """See :meth:`vidvq.runtime.Pool.map_stateful`."""
        function = make()
        for item in items:
            yield item, function(item)

    def count(self, measure: Measure, amount: float, **labels: str) -> None:
        """See :meth:`vidvq.runtime.Pool.count`."""

    def gauge(self, measure: Measure, value: float, **labels: str) -> None:
        """See :meth:`vidvq.runtime.Pool.gauge`."""


def _each(call: tuple[Callable[[Item], Result], list[Item]]) -> Iterator[Result]:
    function, items = call
    yield from map(function, items)
