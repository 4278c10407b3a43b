"""Time accounting of a run: seconds by activity in each worker, and their sum over all workers."""

from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, thread_time
from typing import Any, TypeVar
from uuid import uuid4

from vidvq.formats.commit import Commit
from vidvq.jobs.stage import Activity, Monitor, ShardResult, Stage
from vidvq.log import counted
from vidvq.storage import pretty_json, write_shared

FILE = "metrics.json"
Entry = TypeVar("Entry")
# Activities that all stages share. A stage adds its own.
_ACTIVITIES = {
    "write": Activity("writing and committing", "faster storage for the output, or more workers"),
    "core": Activity("waiting for a CPU core", "fewer workers, or more CPUs: decoding needs some beside each worker"),
    "idle": Activity("waiting for a shard", "smaller shards, so that no worker is left without one at the end"),
}
# A smaller share, or a shorter run (seconds), is not worth advice.
_ADVICE_SHARE = 0.1
_ADVICE_WALL_S = 10.0
_SHOWN_SHARE = 0.005


class Stopwatch:
    """Seconds by activity in one worker; nested activities count for the inner one only.

    Args:
        compute: activities that only compute, on this thread. Wall time beyond their CPU time counts as ``core``
            (waiting for a core).
    """

    def __init__(self, compute: tuple[str, ...] = ()) -> None:
        self.worker = uuid4().hex
        self._compute = compute
        self._ready = self._wall = monotonic()
        self._cpu = thread_time()
        self._open: list[str] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def activity(self, name: str) -> Generator[None]:
        """Count the time in the block as ``name``."""
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def waiting(self, name: str, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield the entries, and count the wait for each as ``name``."""
        while True:
            with self.activity(name):
                try:
                    entry = next(entries)
                except StopIteration:
                    return
            yield entry

    def move(self, seconds: float, source: str, target: str) -> None:
        """Move seconds from one activity to another, at most those that it has."""
        self._book()
        moved = min(seconds, self._seconds[source])
        self._seconds[source] -= moved
        self._seconds[target] += moved

    def result(self, commit: Commit, copied: dict[str, int] | None = None, details: Any = None) -> ShardResult:
        """Build the result of a shard, with the time since the last result."""
        self._book()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return ShardResult(commit, self.worker, monotonic() - self._ready, seconds, copied or {}, details)

    def _book(self) -> None:
        wall, cpu = monotonic(), thread_time()
        if self._open:
            passed, name = wall - self._wall, self._open[-1]
            waited = max(passed - (cpu - self._cpu), 0) if name in self._compute else 0.0
            self._seconds[name] += passed - waited
            if waited:
                self._seconds["core"] += waited
        self._wall, self._cpu = wall, cpu


@dataclass(frozen=True)
class RunMetrics:
    """Totals and worker times of one run; written as ``metrics.json``, even if the run was stopped.

    Attributes:
        work: activity that is the main work of the stage.
        activities: all activities by name.
        wall_s: time from the start of the workers to the last shard (seconds).
        workers: number of workers that made a shard.
        start_s: mean time for a worker to become ready (seconds).
        efficiency: share of ``work`` in the workers' time (0 to 1).
        seconds: time of all workers by activity (seconds).
        totals: totals of this run by name, such as frames and tokens.
        extra: entries of the stage, as JSON types.
        extra_lines: entries of the stage as text.
    """

    work: str
    activities: dict[str, Activity]
    wall_s: float
    workers: int
    start_s: float
    efficiency: float
    seconds: dict[str, float]
    totals: dict[str, int]
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    extra_lines: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The metrics as text; empty if no shard was made."""
        if not any(self.totals.values()):
            return []
        total = sum(self.seconds.values())
        shares = {name: self.seconds.get(name, 0.0) / total for name in self.activities if name != self.work}
        listed = sorted((name for name in shares if shares[name] >= _SHOWN_SHARE), key=lambda name: -shares[name])
        parts = [f"{self.efficiency:.0%} {self.activities[self.work].name}"]
        parts += [f"{shares[name]:.0%} {self.activities[name].name}" for name in listed]
        made = ", ".join(counted(count, name) for name, count in self.totals.items())
        rates = ", ".join(f"{count / self.wall_s:.1f} {name}/s" for name, count in self.totals.items())
        text = [
            *self.extra_lines,
            f"{made} in {self.wall_s:.1f} s by {counted(self.workers, 'workers')}: {rates}; workers "
            f"started in {self.start_s:.1f} s",
            f"time of the workers: {', '.join(parts)}",
        ]
        is_worth = self.wall_s >= _ADVICE_WALL_S and listed and shares[listed[0]] >= _ADVICE_SHARE
        if is_worth and self.activities[listed[0]].remedy:
            activity = self.activities[listed[0]]
            text.append(f"bottleneck: {activity.name}; try {activity.remedy}")
        return text

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON types, with totals and extras at the top level."""
        times = {name: getattr(self, name) for name in ("wall_s", "workers", "start_s", "efficiency", "seconds")}
        return times | self.totals | self.extra

    def write(self, folder: Path) -> None:
        """Write ``metrics.json``, replacing that of an earlier run."""
        write_shared(folder / FILE, pretty_json(self.to_json()))


class TimeAccounting:
    """Sums the results of a run; create it when the workers start."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._ready: dict[str, float] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self.totals: Counter[str] = Counter()

    def add(self, result: ShardResult) -> None:
        """Add a shard when it is committed."""
        self._ready.setdefault(result.worker, monotonic() - result.alive_s)
        for name, seconds in result.seconds.items():
            self._seconds[name] += seconds
        self.totals.update(result.made)

    def report(self, stage: Stage[Any], monitor: Monitor) -> RunMetrics:
        """The metrics of the run so far."""
        ended = monotonic()
        starts = [max(ready - self._began, 0.0) for ready in self._ready.values()]
        alive = sum(ended - ready for ready in self._ready.values())
        seconds = dict(self._seconds) | {"idle": max(alive - sum(self._seconds.values()), 0.0)}
        return RunMetrics(
            work=stage.work,
            activities=_ACTIVITIES | stage.activities,
            wall_s=round(ended - self._began, 3),
            workers=len(starts),
            start_s=round(sum(starts) / max(len(starts), 1), 3),
            efficiency=round(seconds.get(stage.work, 0.0) / max(sum(seconds.values()), 1e-9), 4),
            seconds={name: round(value, 6) for name, value in seconds.items()},
            totals={name: self.totals[name] for name in stage.totals},
            extra=monitor.metrics(),
            extra_lines=tuple(monitor.lines()),
        )
