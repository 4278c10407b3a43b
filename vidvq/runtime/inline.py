"""The pool without Ray. Calls run in this process, one at a time; calls with a deadline run in a child process."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from vidvq.runtime.deaths import Deaths
from vidvq.runtime.feeder import Feeder
from vidvq.runtime.interface import Item, Metric, Result, WorkerDied

# Calls per request to the child process; more would only lengthen the list that travels.
_BATCH = 32


class InlinePool:
    """Pool for small jobs, for debugging, and for installations without Ray. See :class:`vidvq.runtime.Pool`."""

    size = 1

    def __init__(self) -> None:
        self._feeder = Feeder()

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
        if deadline_s is None:
            yield from ((item, function(item)) for item in items)
            return
        source = iter(items)
        while batch := list(islice(source, _BATCH)):
            yield from self._in_child(function, batch, retries, deadline_s)
        self._feeder.release()

    def _in_child(
        self, function: Callable[[Item], Result], items: list[Item], retries: int, deadline_s: float
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        deaths = Deaths(1 + retries)
        while items:
            done = 0
            for result in self._feeder.feed(_map_items, (function, items), deadline_s):
                # The child may die after its last result.
                if isinstance(result, WorkerDied) and (
                    done == len(items) or not deaths.give_up(result, len(items) - done)
                ):
                    break
                yield items[done], result
                done += 1
            items = items[done:]

    def map_stateful(
        self,
        make: Callable[[], Callable[..., Result]],
        items: Iterable[Item],
        *,
        cpus: float = 1,
        gpus: float = 0,
        lookahead: bool = False,
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        function = make()
        if not lookahead:
            yield from ((item, function(item)) for item in items)
            return
        source = iter(items)
        ahead = deque(islice(source, 1))
        while ahead:
            item = ahead.popleft()
            ahead.extend(islice(source, 1))
            yield item, function(item, ahead[0] if ahead else None)

    def count_workers(self, gpus: float) -> int:
        return 1

    def count(self, metric: Metric, amount: float, **labels: str) -> None:
        pass

    def gauge(self, metric: Metric, value: float, **labels: str) -> None:
        pass


def _map_items(call: tuple[Callable[[Item], Result], list[Item]]) -> Iterator[Result]:
    function, items = call
    yield from map(function, items)
