"""Generation of the samples of a shard, in batches of one shape."""

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from vidvq.errors import UsageError
from vidvq.formats.commit import Outcome, ShardDraft
from vidvq.formats.reuse import reusable_samples
from vidvq.formats.rows import PlanRow
from vidvq.jobs.shard_writer import OrderedShardWriter, Rejected, Sample
from vidvq.jobs.stage import AnyRow, ShardTask

Pending = TypeVar("Pending")


class BatchPipeline(Protocol[Pending]):
    """Generates several samples at a time.

    Attributes:
        batch: largest number of samples of a call.
    """

    batch: int

    def batch_key(self, sample: Pending) -> Hashable:
        """Return what samples that are generated together have in common, such as their shape."""
        ...

    def generate(self, samples: list[Pending]) -> list[dict[str, bytes]]:
        """Generate samples of one :meth:`batch_key`; returns the files of each, by extension."""
        ...


def begin_shard(
    task: ShardTask[AnyRow], draft: ShardDraft, copied: dict[str, int]
) -> tuple[OrderedShardWriter, list[AnyRow]]:
    """Write the items of a shard that need no generation; return its writer and the rows to generate.

    Args:
        copied: takes the number of samples that are copied from an older version of the shard.
    """
    writer = OrderedShardWriter(draft, [row.key for row in task.rows])
    for verdict, outcome in task.left_out():
        writer.put(Rejected(verdict, outcome))
    reused = reusable_samples(task.out, task.older, task.rows)
    copied["samples"] = len(reused)
    for key, files in reused.items():
        writer.put(Sample(key, files, {"samples": 1}))
    return writer, [row for row in task.rows if not row.outcome and row.key not in reused]


class Batches(Generic[Pending]):
    """Collects samples until there are enough for a batch, and writes them when they are generated."""

    def __init__(self, pipeline: BatchPipeline[Pending], writer: OrderedShardWriter) -> None:
        self._pipeline, self._writer = pipeline, writer
        self._waiting: dict[Hashable, dict[str, Pending]] = {}

    def add(self, row: PlanRow, prepare: Callable[[], Pending]) -> None:
        """Add the sample of a row.

        Args:
            prepare: returns the sample; a UsageError of it fails the row.
        """
        try:
            sample = prepare()
        except UsageError as error:
            # Errors of unreadable tokens name shard and key already.
            named = [] if row.key in str(error) else dict.fromkeys([row.origin, row.key])
            self._writer.put(Rejected("failed", Outcome(row.key, "bad_prompt", ": ".join([*named, str(error)]))))
            return
        key = self._pipeline.batch_key(sample)
        waiting = self._waiting.setdefault(key, {})
        waiting[row.key] = sample
        if len(waiting) == self._pipeline.batch:
            self._generate(key)

    def flush(self) -> None:
        """Generate the samples that still wait, in batches that are not full."""
        for key in list(self._waiting):
            self._generate(key)

    def _generate(self, key: Hashable) -> None:
        waiting = self._waiting.pop(key)
        for name, files in zip(waiting, self._pipeline.generate(list(waiting.values())), strict=True):
            self._writer.put(Sample(name, files, {"samples": 1}))
