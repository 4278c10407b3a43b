"""What a stage of the corpus job is: `vidvq shard`, `vidvq tokenize`, `vidvq map`, and the stages that users add.

A stage says three things: what the bytes of its shards depend on (:meth:`Stage.identity`), which items an input gives
(:meth:`VideoStage.probe`; a stage over clips has one item for each clip), and how one shard is made
(:meth:`Stage.worker`). Planning, resuming, updating, scheduling, accounting and reporting are the same for all stages.

    inputs --plan--> rows, grouped into shards --worker--> one tar and one commit record per shard --> summary, report
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from vidvq.corpus.lists import ListPolicy
from vidvq.corpus.source import Source
from vidvq.errors import UsageError
from vidvq.formats.commit import Commit, Outcome
from vidvq.formats.plan import has_plan
from vidvq.formats.rows import PlanRow
from vidvq.jobs.rows import ClipRow, VideoRow
from vidvq.runtime import Pool, RuntimeConfig
from vidvq.storage import resolve_path

AnyRow = TypeVar("AnyRow", bound=PlanRow)
AnyVideoRow = TypeVar("AnyVideoRow", bound=VideoRow)


class StageConfig(Protocol):
    """Settings that every stage has.

    Attributes:
        max_failed: share of the items that may fail before the exit code is 1 (0 to 1).
        runtime: where the job runs; has no influence on the output.
    """

    @property
    def max_failed(self) -> float: ...

    @property
    def runtime(self) -> RuntimeConfig: ...


@dataclass(frozen=True)
class ShardTask(Generic[AnyRow]):
    """One shard to make; travels to a worker.

    Attributes:
        out: the output directory.
        shard: file name of the shard.
        plan_id: ``plan_id`` of its commit record.
        rows: its items, in the order of the plan.
        older: earlier names of the shard with their generations, oldest first; their samples may be reused.
    """

    out: Path
    shard: str
    plan_id: str
    rows: Sequence[AnyRow]
    older: Sequence[tuple[str, int]] = ()

    def left_out(self) -> Iterator[tuple[str, Outcome]]:
        """Yield what the plan has decided already: ``failed`` or ``filtered``, and the outcome."""
        for row in self.rows:
            if row.outcome:
                yield row.outcome, Outcome(row.key, row.reason, f"{row.origin}: {row.detail}")


@dataclass(frozen=True)
class ShardResult:
    """One shard that is committed, and what its worker knows of it beside the record.

    Attributes:
        commit: the commit record; another driver may have written it.
        worker: id of the worker.
        alive_s: time since the worker was ready (seconds).
        seconds: time spent on this shard by activity (seconds).
        copied: those of the record's statistics that belong to samples copied from an older form of the shard.
        details: whatever the stage's :class:`Monitor` reads.
    """

    commit: Commit
    worker: str
    alive_s: float
    seconds: dict[str, float]
    copied: dict[str, int] = field(default_factory=dict[str, int])
    details: Any = None

    @property
    def made(self) -> dict[str, int]:
        """The record's statistics without those of copied samples."""
        return {name: count - self.copied.get(name, 0) for name, count in self.commit.stats.items()}


Worker: TypeAlias = Callable[[ShardTask[AnyRow]], ShardResult]


class Monitor:
    """Watches a job's shards as they are committed. A stage with quality gates overrides it."""

    def see(self, commit: Commit) -> None:
        """Take in the record of a shard, made by this run or an earlier one.

        Raises:
            JobStopped: a gate is closed.
        """

    def add(self, result: ShardResult) -> None:
        """Take in a shard made by this run.

        Raises:
            JobStopped: a gate is closed.
        """

    def metrics(self) -> dict[str, Any]:
        """What the stage adds to ``metrics.json``, as JSON types."""
        return {}

    def lines(self) -> list[str]:
        """The same for a person."""
        return []


@dataclass(frozen=True)
class Activity:
    """What workers spend time on, for the report of a run.

    Attributes:
        name: what it is, such as "encoding".
        remedy: what helps if it takes much of the time; "" for the stage's own work.
    """

    name: str
    remedy: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """One picture of the contact sheet in ``report.html``.

    Attributes:
        key: key of the item.
        caption: one line.
        jpeg: the picture.
    """

    key: str
    caption: str
    jpeg: bytes


class Stage(ABC, Generic[AnyRow]):
    """One stage of the corpus job. Travels to workers by pickle, so it holds settings and paths alone.

    Attributes:
        name: name of the command and of the stage in plans.
        prefix: prefix of the shards' names.
        unit: what an item is called, in plural.
        work: the activity (a key of ``activities``) that is the stage's own work.
        activities: what workers spend time on, by the names in :attr:`ShardResult.seconds`.
        totals: the statistics of commit records that are reported as rates.
        thumbnail_count: number of samples on the contact sheet of ``report.html``.
        sheet_title: its heading.
        config_type: type of the settings, a frozen dataclass with ``max_failed`` and ``runtime``.
        row: type of the plan's rows.
        cpus: CPUs of a worker; 0 if it only waits for calls it makes on the pool.
        gpus: GPUs of a worker.
    """

    name: ClassVar[str]
    prefix: ClassVar[str]
    unit: ClassVar[str] = "clips"
    work: ClassVar[str] = "process"
    activities: ClassVar[dict[str, Activity]] = {"process": Activity("processing")}
    totals: ClassVar[tuple[str, ...]] = ("frames",)
    thumbnail_count: ClassVar[int] = 24
    sheet_title: ClassVar[str] = "Samples drawn from all shards"
    config_type: ClassVar[type[Any]]
    row: type[AnyRow]
    config: StageConfig
    cpus: float = 1
    gpus: float = 0

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that the bytes of the shards depend on beside the inputs, as JSON types."""

    @abstractmethod
    def worker(self, pool: Pool) -> "Worker[AnyRow]":
        """Build what makes shards, once in each worker process.

        Args:
            pool: for calls of its own, such as one call for each video of a shard.

        Returns:
            A callable that makes and commits one shard. The same task gives the same bytes, however often it runs.
        """

    def check(self) -> None:
        """Refuse what cannot run, before any work.

        Raises:
            UsageError: says what is wrong and what to do.
        """

    def begin(self, out: Path) -> None:
        """Write what belongs to the output directory as a whole, before the first shard."""

    def monitor(self) -> Monitor:
        """Build what watches one run."""
        return Monitor()

    def units(self, tasks: Sequence[ShardTask[AnyRow]]) -> int:
        """Number of pieces of work in these tasks that can run at the same time."""
        return len(tasks)

    def thumbnails(self, out: Path, drawn: Sequence[tuple[Commit, AnyRow]], pool: Pool) -> Iterator[Thumbnail]:
        """Yield pictures of drawn samples (commit record and row) for ``report.html``; none by default."""
        return iter(())

    @classmethod
    @abstractmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "Stage[Any]":
        """Build the stage for a job.

        Args:
            inputs: the inputs of the job; none for an update of a corpus of videos.
            config: settings, of :attr:`config_type`.
            options: options of the command beside the settings.

        Raises:
            UsageError: a mistake in the arguments.
        """

    @classmethod
    def default_out(cls, inputs: list[str], **options: Any) -> Path:
        """The output directory of a job that is given none.

        Raises:
            UsageError: the stage has no such rule.
        """
        raise UsageError("--out is missing; give an output directory")

    @classmethod
    def settings_of(cls, made_from: dict[str, Any]) -> dict[str, Any]:
        """The settings that a plan was made with, as far as it keeps them."""
        return {each.name: made_from[each.name] for each in fields(cls.config_type) if each.name in made_from}


class VideoStage(Stage[AnyVideoRow]):
    """A stage whose inputs are videos.

    Attributes:
        lists: meaning of the columns of lists.
        per_shard: number of planned items in one shard.
        deadline_s: time limit of probing one video (seconds).
    """

    @property
    @abstractmethod
    def lists(self) -> ListPolicy: ...
    @property
    @abstractmethod
    def per_shard(self) -> int: ...
    @property
    @abstractmethod
    def deadline_s(self) -> float: ...

    @property
    def probes_per_worker(self) -> int:
        """Number of videos that are not worth a second worker to probe."""
        return 32

    @classmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "VideoStage[Any]":
        """Build the stage for a job; the inputs are listed when it is planned."""
        return cls(config=config, **options)  # type: ignore[call-arg] (subclasses are dataclasses)

    @abstractmethod
    def probe(self, source: Source) -> list[AnyVideoRow]:
        """The rows of one video: items to make, and a row with a reason for what cannot be made.

        Runs in a worker and never raises; never empty.
        """

    @abstractmethod
    def reject(self, source: Source, reason: str, detail: str) -> AnyVideoRow:
        """The row of a video that fails as a whole."""

    def select(self, rows: Iterable[AnyVideoRow], existing: Iterable[AnyVideoRow]) -> Iterator[AnyVideoRow]:
        """Filter the rows of a plan by what only the whole corpus tells, such as duplicates.

        Args:
            rows: new rows, those of one source together.
            existing: rows that stand beside them.
        """
        return iter(rows)

    def shorten(self, rows: list[AnyVideoRow]) -> list[AnyVideoRow]:
        """A few of the rows of one video, for an estimate."""
        return rows[:8]


@dataclass(frozen=True, kw_only=True)
class ClipStage(Stage[ClipRow]):
    """A stage whose input is a directory of clip shards; it makes one shard for each of them.

    Attributes:
        clips: the directory.
    """

    clips: Path
    row = ClipRow

    @property
    def where(self) -> str | None:
        """An expression that selects clips (see :mod:`vidvq.formats.selection`): the setting ``where``, if any."""
        return getattr(self.config, "where", None)

    @classmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "ClipStage":
        """Build the stage for a job over the one directory in ``inputs``."""
        return cls(clips=cls.require_clips(inputs), config=config, **options)  # type: ignore[call-arg] (subclasses)

    @classmethod
    def require_clips(cls, inputs: Sequence[str]) -> Path:
        """The one directory of clip shards in the inputs.

        Raises:
            UsageError: there is none, or it is not the only input.
        """
        clips = cls.find_clips(inputs)
        if clips is None:
            got = " ".join(inputs) or "none"
            raise UsageError(f"vidvq {cls.name} takes a directory that vidvq shard wrote; got {got}")
        return clips

    @staticmethod
    def find_clips(inputs: Sequence[str]) -> Path | None:
        """The directory of clip shards among the inputs; None if there is none.

        Raises:
            UsageError: it is not the only input.
        """
        planned = [resolve_path(given) for given in inputs if has_plan(resolve_path(given))]
        if planned and len(inputs) > 1:
            raise UsageError(f"{planned[0]} is a directory of shards; give it alone")
        return planned[0] if planned else None
