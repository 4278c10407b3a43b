"""Telemetry of a run: the note after the progress bar, and metrics that Ray serves to Prometheus."""

from collections import Counter
from time import monotonic
from typing import Any

from vidvq.formats.commit import Commit
from vidvq.jobs.stage import ShardResult, Stage
from vidvq.runtime import Metric, Pool


class Telemetry:
    """Publishes the metrics of a run, shard by shard, as ``vidvq_STAGE_*``."""

    def __init__(self, stage: Stage[Any], pool: Pool) -> None:
        prefix = f"vidvq_{stage.name}"
        self._pool = pool
        self._items = Metric(f"{prefix}_items", "Items accounted for by this run.", ("outcome", "reason"))
        self._shards = Metric(f"{prefix}_shards", "Shards committed by this run.")
        self._totals = {name: Metric(f"{prefix}_{name}", f"Number of {name} of this run.") for name in stage.totals}
        self._seconds = Metric(f"{prefix}_worker_seconds", "Time of all workers by activity (seconds).", ("stage",))
        self._efficiency = Metric(f"{prefix}_efficiency", "Share of the stage's own work in the workers' time.")

    def publish(self, result: ShardResult, efficiency: float) -> None:
        """Publish a shard of this run, and the efficiency so far (0 to 1)."""
        commit, count = result.commit, self._pool.count
        count(self._shards, 1)
        count(self._items, commit.ok, outcome="ok", reason="")
        for outcome, items in (("failed", commit.failed), ("filtered", commit.filtered)):
            for reason, number in Counter(item.reason for item in items).items():
                count(self._items, number, outcome=outcome, reason=reason)
        for name, measure in self._totals.items():
            count(measure, result.made.get(name, 0))
        for name, seconds in result.seconds.items():
            count(self._seconds, seconds, stage=name)
        self._pool.gauge(self._efficiency, efficiency)


class ProgressNote:
    """The note after the progress bar: rates of this run, and failed items of the whole job."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._failed = 0
        self._totals: Counter[str] = Counter()

    def committed(self, commit: Commit) -> str:
        """The note after a shard of an earlier run."""
        self._failed += len(commit.failed)
        passed = max(monotonic() - self._began, 1e-9)
        rates = [f"{count / passed:.0f} {name}/s" for name, count in self._totals.items() if count]
        return ", ".join([*rates, f"{self._failed} failed"])

    def made(self, result: ShardResult) -> str:
        """The note after a shard of this run."""
        self._totals.update({name: result.made[name] for name in ("frames", "tokens") if name in result.made})
        return self.committed(result.commit)
