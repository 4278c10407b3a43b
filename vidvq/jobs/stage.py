"""Interface of the stages of the corpus job: `vidvq shard`, `vidvq tokenize`, `vidvq map`, and those of users.

A stage defines what the bytes of its shards depend on (:meth:`Stage.identity`), which items an input contains
(:meth:`VideoStage.probe`; a stage over clips has one item per clip), and how to make one shard
(:meth:`Stage.worker`). Planning, resuming, updating, scheduling, accounting and reporting are common to all stages.

    inputs --plan--> rows, grouped into shards --worker--> one tar and one commit record per shard --> summary, report
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

from vidvq.corpus.inputs import list_sources
from vidvq.corpus.lists import ListPolicy
from vidvq.corpus.source import Source
from vidvq.errors import UsageError
from vidvq.formats.commit import Commit, Outcome
from vidvq.formats.plan import has_plan
from vidvq.formats.rows import PlanRow
from vidvq.jobs.access import AccessWatch
from vidvq.jobs.rows import ClipRow, VideoRow
from vidvq.runtime import Pool, Runtime, RuntimeConfig
from vidvq.storage import resolve_path
from vidvq.video.limits import Limits

AnyRow = TypeVar("AnyRow", bound=PlanRow)
AnyVideoRow = TypeVar("AnyVideoRow", bound=VideoRow)


class StageConfig(Protocol):
    """Settings that every stage has.

    Attributes:
        max_failed: maximum share of failed items (0 to 1); above it the exit code is 1.
        runtime: execution of the job; does not affect the output.
    """

    @property
    def max_failed(self) -> float: ...

    @property
    def runtime(self) -> RuntimeConfig: ...


@dataclass(frozen=True)
class ShardTask(Generic[AnyRow]):
    """One shard to make, sent to a worker.

    Attributes:
        out: output directory.
        shard: file name of the shard.
        plan_id: ``plan_id`` of its commit record.
        rows: items of the shard, in plan order.
        older: earlier names of the shard with their generations, oldest first; their samples may be reused.
    """

    out: Path
    shard: str
    plan_id: str
    rows: Sequence[AnyRow]
    older: Sequence[tuple[str, int]] = ()

    def left_out(self) -> Iterator[tuple[str, Outcome]]:
        """Yield the items that failed or were filtered in planning: ``failed`` or ``filtered``, and the outcome."""
        for row in self.rows:
            if row.outcome:
                yield row.outcome, Outcome(row.key, row.reason, f"{row.origin}: {row.detail}")


@dataclass(frozen=True)
class ShardResult:
    """One committed shard, and the worker's measurements of it.

    Attributes:
        commit: commit record; another driver may have written it.
        worker: id of the worker.
        alive_s: time since the worker was ready (seconds).
        seconds: time spent on this shard by activity (seconds).
        copied: the part of the record's statistics that belongs to samples copied from an older version of the shard.
        details: additional values for the :class:`Monitor` of the stage.
    """

    commit: Commit
    worker: str
    alive_s: float
    seconds: dict[str, float]
    copied: dict[str, int] = field(default_factory=dict[str, int])
    details: Any = None

    @property
    def made(self) -> dict[str, int]:
        """Statistics of the record without those of copied samples."""
        return {name: count - self.copied.get(name, 0) for name, count in self.commit.stats.items()}


Worker: TypeAlias = Callable[[ShardTask[AnyRow]], ShardResult]


class Monitor:
    """Observer of the committed shards of a job. Stages with quality gates override it."""

    def on_commit(self, commit: Commit) -> None:
        """Process the record of a shard, made by this run or an earlier one.

        Raises:
            JobStopped: a quality gate failed.
        """

    def on_result(self, result: ShardResult) -> None:
        """Process a shard made by this run.

        Raises:
            JobStopped: a quality gate failed.
        """

    def metrics(self) -> dict[str, Any]:
        """Entries of the stage in ``metrics.json``, as JSON types."""
        return {}

    def lines(self) -> list[str]:
        """The metrics as text."""
        return []


@dataclass(frozen=True)
class Activity:
    """An activity of workers, for the time accounting of a run.

    Attributes:
        name: name of the activity, such as "encoding".
        remedy: advice if it takes much of the time; "" for the main work of the stage.
    """

    name: str
    remedy: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """One image of the contact sheet in ``report.html``.

    Attributes:
        key: key of the item.
        caption: caption (one line).
        jpeg: image, encoded as JPEG.
    """

    key: str
    caption: str
    jpeg: bytes


class Stage(ABC, Generic[AnyRow]):
    """A stage of the corpus job. Pickled for workers, so it has only settings and paths.

    Attributes:
        name: name of the command and of the stage in plans.
        prefix: prefix of shard names.
        unit: name of the items (plural).
        work: key in ``activities`` of the main work of the stage.
        activities: activities of workers, by the names in :attr:`ShardResult.seconds`.
        totals: names of the statistics in commit records to report as rates.
        thumbnail_count: number of samples on the contact sheet of ``report.html``.
        sheet_title: heading of the contact sheet.
        config_type: type of the settings, a frozen dataclass with ``max_failed`` and ``runtime``.
        row: type of the rows of the plan.
        cpus: CPUs of a worker; 0 if it only waits for its calls to the pool.
        gpus: GPUs of a worker.
        lookahead: whether a worker also takes its next task (None if unknown), so that it can prepare it.
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
    lookahead: ClassVar[bool] = False

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything except the inputs that the bytes of the shards depend on, as JSON types."""

    @abstractmethod
    def worker(self, pool: Pool) -> "Worker[AnyRow]":
        """Build the function that makes shards; called once in each worker process.

        Args:
            pool: pool for nested calls, such as one call per video of a shard.

        Returns:
            A callable that makes and commits one shard. It must be deterministic: repeated calls with a task write the
            same bytes.
        """

    def check(self) -> None:
        """Check the settings before any work.

        Raises:
            UsageError: the stage cannot run with these settings.
        """

    def prepare(self, out: Path, runtime: Runtime) -> Self:
        """Return the stage completed with what depends on the machines of the job; called before planning.

        Args:
            out: the output directory, with a plan if the job is resumed.
        """
        return self

    def files(self) -> dict[str, bytes]:
        """The files of the output directory beside the shards, by name; the plan keeps their digests."""
        return {}

    def monitor(self) -> Monitor:
        """Build the monitor of one run."""
        return Monitor()

    def units(self, tasks: Sequence[ShardTask[AnyRow]]) -> int:
        """Number of units of work in these tasks that can run in parallel."""
        return len(tasks)

    def thumbnails(self, out: Path, drawn: Sequence[tuple[Commit, AnyRow]]) -> Iterator[Thumbnail]:
        """Yield thumbnails of randomly drawn samples for ``report.html``, in the process of the command."""
        return iter(())

    @classmethod
    @abstractmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "Stage[Any]":
        """Build the stage for a job.

        Args:
            inputs: inputs of the job; empty for an update of a corpus of videos.
            config: settings, an instance of :attr:`config_type`.

        Raises:
            UsageError: an argument is wrong.
        """

    @classmethod
    def default_out(cls, inputs: list[str], **options: Any) -> Path:
        """Default output directory.

        Raises:
            UsageError: the stage has no default.
        """
        raise UsageError("--out is missing; give an output directory")

    @classmethod
    def settings_of(cls, made_from: dict[str, Any]) -> dict[str, Any]:
        """The settings of a plan, as far as its header has them."""
        return {each.name: made_from[each.name] for each in fields(cls.config_type) if each.name in made_from}


class ListedStage(Stage[AnyRow]):
    """A stage that lists its items itself."""

    @abstractmethod
    def rows(self) -> Iterator[AnyRow]:
        """Yield all items in the order of their shards; the same as long as :meth:`identity` is the same."""


class VideoStage(Stage[AnyVideoRow]):
    """A stage whose inputs are videos.

    Attributes:
        per_shard: number of planned items per shard.
        lists: interpretation of the columns of lists.
    """

    @property
    @abstractmethod
    def per_shard(self) -> int: ...

    @property
    def lists(self) -> ListPolicy:
        """Those of the settings, if they have any."""
        return getattr(self.config, "lists", ListPolicy())

    @property
    def deadline_s(self) -> float:
        """Time limit of probing one video (seconds)."""
        return self._limits.deadline_s

    @property
    def _limits(self) -> Limits:
        """Those of the settings, if they have any."""
        return getattr(self.config, "limits", Limits())

    def sources(self, inputs: list[str]) -> Iterator[Source]:
        """Yield the videos that the inputs name, as :func:`vidvq.corpus.inputs.list_sources` does."""
        return list_sources(inputs, self.lists, self._limits.download_deadline_s)

    def access_watch(self) -> AccessWatch:
        """Build the watch that stops the job when its credentials have expired."""
        return AccessWatch(self.lists.allow_private, self._limits.allow_denied)

    @property
    def probes_per_worker(self) -> int:
        """Number of videos to probe before a second worker pays off."""
        return 32

    @classmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "VideoStage[Any]":
        """Build the stage for a job; the inputs are listed when it is planned."""
        return cls(config=config, **options)  # type: ignore[call-arg] (subclasses are dataclasses)

    @abstractmethod
    def probe(self, source: Source) -> list[AnyVideoRow]:
        """Probe one video: rows of the items to make, and rows with a reason for those that cannot be made.

        Runs in a worker. Must not raise, and must return at least one row.
        """

    @abstractmethod
    def reject(self, source: Source, reason: str, detail: str) -> AnyVideoRow:
        """Build the row of a video that fails as a whole."""

    def select(self, rows: Iterable[AnyVideoRow], existing: Iterable[AnyVideoRow]) -> Iterator[AnyVideoRow]:
        """Filter the rows of a plan by properties of the whole corpus, such as duplicates.

        Args:
            rows: new rows, grouped by source.
            existing: rows that are already in the plan.
        """
        return iter(rows)

    def shorten(self, rows: list[AnyVideoRow]) -> list[AnyVideoRow]:
        """Select a few rows of one video, for an estimate."""
        return rows[:8]


@dataclass(frozen=True, kw_only=True)
class ClipStage(Stage[ClipRow]):
    """A stage whose input is a directory of clip shards; it makes one shard per clip shard.

    Attributes:
        clips: directory of clip shards.
    """

    clips: Path
    row = ClipRow

    @property
    def where(self) -> str | None:
        """Expression that selects clips, from the setting ``where``; see :mod:`vidvq.formats.selection`."""
        return getattr(self.config, "where", None)

    @classmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "ClipStage":
        """Build the stage for a job over the one directory in ``inputs``."""
        return cls(clips=cls.require_clips(inputs), config=config, **options)  # type: ignore[call-arg] (subclasses)

    @classmethod
    def require_clips(cls, inputs: Sequence[str]) -> Path:
        """The directory of clip shards, which must be the only input.

        Raises:
            UsageError: there is no such directory, or it is not the only input.
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
            raise UsageError(f"{planned[0]} is a directory of shards; give no other inputs")
        return planned[0] if planned else None
