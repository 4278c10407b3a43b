"""Estimate of the output and the time of a job (``--dry-run``), from a sample made in a temporary folder."""

import random
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Any, Generic, TypeVar

from vidvq.corpus.source import Source
from vidvq.errors import UsageError
from vidvq.formats.commit import Commit
from vidvq.formats.plan import read_plan
from vidvq.formats.rows import NOT_SELECTED
from vidvq.formats.selection import ClipSelection
from vidvq.jobs.listing import probe_sources
from vidvq.jobs.plan_clips import read_clip_shards, rows_of, select_rows
from vidvq.jobs.stage import AnyRow, AnyVideoRow, ClipStage, ShardTask, Stage, VideoStage
from vidvq.log import counted, in_bytes, progress
from vidvq.runtime import Pool, Runtime, WorkerDied, open_runtime
from vidvq.storage import temporary_prefix

_PROBED = 256
_TASKS = 8
_CLIPS_PER_TASK = 8
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Estimate:
    """Result of ``--dry-run``, extrapolated from a sample unless ``exact``.

    Attributes:
        unit: name of the items (plural).
        inputs: number of videos, or of clip shards.
        probed: number of inputs that were probed.
        items: number of items that would be made.
        stats: totals of the items that would be made: frames, tokens.
        bytes: size of the shards.
        left_out: number of items that the plan would count as failed or filtered, by reason.
        exact: whether ``items``, ``shards`` and frames are counted, not extrapolated.
        sampled: number of items that were made to estimate the rest.
        workers: number of workers that ``seconds`` is for.
        seconds: time of the job (seconds); None if no sampled item could be made.
    """

    unit: str
    inputs: int
    probed: int
    items: int
    shards: int
    stats: dict[str, int]
    bytes: int
    left_out: dict[str, int]
    exact: bool
    sampled: int
    workers: int
    seconds: float | None

    def lines(self) -> list[str]:
        """The estimate as text."""
        about = "" if self.exact else "about "
        counts = [
            f"{about}{counted(self.items, self.unit)}",
            *(f"about {count} {name}" for name, count in self.stats.items()),
        ]
        text = [
            f"{', '.join(counts)} in {about}{counted(self.shards, 'shards')}, about {in_bytes(self.bytes)}, from "
            f"{counted(self.inputs, 'inputs')}; nothing was written"
        ]
        text += [f"  left out as {reason}: {about}{count}" for reason, count in sorted(self.left_out.items())]
        if self.seconds is not None:
            hours, rest = divmod(round(self.seconds), 3600)
            workers = counted(self.workers, "workers")
            text.append(f"  takes about {hours}:{rest // 60:02d}:{rest % 60:02d} with {workers}")
        probed, sampled = counted(self.probed, "probed inputs"), counted(self.sampled, self.unit)
        return [*text, f"  estimated from {probed} and {sampled} that were made"]


@dataclass(frozen=True)
class _Sample(Generic[AnyRow]):
    """Counts of a corpus, known or extrapolated from probing, and the rows to make as a sample.

    Attributes:
        probe_s: time to probe all inputs (seconds).
    """

    inputs: int
    probed: int
    items: int
    shards: int
    frames: int
    exact: bool
    groups: Sequence[Sequence[AnyRow]]
    probe_s: float = 0.0
    left_out: dict[str, int] = field(default_factory=dict[str, int])


def estimate(stage: Stage[Any], inputs: list[str]) -> Estimate:
    """Probe a sample of the inputs, make a few items, and extrapolate.

    Raises:
        UsageError: a mistake in the arguments.
    """
    stage.check()
    with open_runtime(stage.config.runtime) as runtime, _temporary_folder() as folder:
        stage = stage.prepare(folder, runtime)
        sample = _sample_videos(stage, inputs, runtime) if isinstance(stage, VideoStage) else _sample_clips(stage)
        tasks = [ShardTask(Path(), f"sample-{number}.tar", "", rows) for number, rows in enumerate(sample.groups)]
        pool = runtime.pool(sample.shards)
        made = _make(stage, tasks, pool)
        workers = max(min(pool.count_workers(stage.gpus), sample.shards), 1)
    ok = sum(commit.ok for commit, _ in made)
    frames = sum(commit.stats.get("frames", 0) for commit, _ in made)
    # Scale by frames if the stage counts them, because clips differ in length; otherwise by items.
    scale = sample.frames / frames if frames else sample.items / ok if ok else 0.0
    totals: Counter[str] = Counter()
    for commit, _ in made:
        totals.update({name: count for name, count in commit.stats.items() if name in stage.totals})
    seconds = sample.probe_s + scale * sum(seconds for _, seconds in made) / workers
    return Estimate(
        unit=stage.unit,
        inputs=sample.inputs,
        probed=sample.probed,
        items=sample.items,
        shards=sample.shards,
        stats={name: round(scale * count) for name, count in totals.items()},
        bytes=round(scale * sum(commit.bytes for commit, _ in made)),
        left_out=sample.left_out,
        exact=sample.exact,
        sampled=ok,
        workers=workers,
        seconds=seconds if ok else None,
    )


def reservoir_sample(sources: Iterable[Source], size: int) -> tuple[int, list[Source]]:
    """Count sources, and draw a uniform, deterministic sample (Vitter 1985, algorithm R)."""
    generator = random.Random(0)
    sample: list[Source] = []
    count = 0
    with progress("list", None, "videos") as bar:
        for source in sources:
            count += 1
            bar.advance()
            if len(sample) < size:
                sample.append(source)
            elif (index := generator.randrange(count)) < size:
                sample[index] = source
    return count, sample


def _sample_videos(stage: VideoStage[AnyVideoRow], inputs: list[str], runtime: Runtime) -> _Sample[AnyVideoRow]:
    count, sources = reservoir_sample(stage.sources(inputs), _PROBED)
    if not count:
        raise UsageError("the inputs contain no videos")
    pool = runtime.pool(-(-len(sources) // stage.probes_per_worker))
    began = monotonic()
    probed: list[AnyVideoRow] = []
    with progress("probe", len(sources), "videos") as bar:
        for _, found in probe_sources(stage, sources, pool):
            probed += found
            bar.advance()
    scale = count / len(sources)
    rows = list(stage.select(probed, ()))
    items = [row for row in rows if not row.outcome]
    left_out = Counter(row.reason for row in rows if row.outcome)
    by_video = groupby(items, key=lambda row: row.source.identity)
    groups = [some for _, found in by_video if (some := stage.shorten(list(found)))]
    return _Sample(
        inputs=count,
        probed=len(sources),
        items=round(scale * len(items)),
        shards=-(-round(scale * len(rows)) // stage.per_shard),
        frames=round(scale * sum(row.num_frames for row in items)),
        exact=len(sources) == count,
        groups=_spread(groups),
        probe_s=scale * (monotonic() - began),
        left_out={reason: round(scale * number) for reason, number in left_out.items()},
    )


def _sample_clips(stage: Stage[Any]) -> _Sample[Any]:
    if not isinstance(stage, ClipStage):
        raise UsageError(f"vidvq {stage.name} has no --dry-run: it is neither over videos nor over clips")
    plan = read_plan(stage.clips)
    selection = ClipSelection(stage.clips, plan, stage.where, "where") if stage.where else None
    shards = list(read_clip_shards(stage.clips, plan))
    clips = sum(commit.ok for commit in shards)
    rows = (
        [[row for row in select_rows(shard, index, selection) if not row.outcome] for index, shard in enumerate(shards)]
        if selection
        else []
    )
    selected = sum(map(len, rows)) if selection else clips
    drawn = _spread(range(len(shards)))
    groups = [rows[index] if selection else list(rows_of(shards[index], index)) for index in drawn]
    return _Sample(
        inputs=len(shards),
        probed=len(shards),
        items=selected,
        shards=len(shards),
        frames=round(sum(commit.stats["frames"] for commit in shards) * selected / max(clips, 1)),
        exact=True,
        groups=[group[:_CLIPS_PER_TASK] for group in groups if group],
        left_out={NOT_SELECTED: clips - selected} if clips > selected else {},
    )


def _spread(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries at even distances: neighbours, as of one folder, are alike."""
    count = min(_TASKS, len(entries))
    return [entries[at * len(entries) // count] for at in range(count)]


def _make(stage: Stage[Any], tasks: list[ShardTask[Any]], pool: Pool) -> list[tuple[Commit, float]]:
    worker = partial(_TimedWorker, stage, pool)
    made: list[tuple[Commit, float]] = []
    with progress("sample", len(tasks), "shards") as bar:
        for _, result in pool.map_stateful(worker, tasks, cpus=stage.cpus, gpus=stage.gpus):
            bar.advance()
            if not isinstance(result, WorkerDied):
                made.append(result)
    return made


class _TimedWorker:
    """Makes shards in a temporary folder, and returns each record with its time (seconds)."""

    def __init__(self, stage: Stage[Any], pool: Pool) -> None:
        self._make = stage.worker(pool)
        self._warm = False

    def __call__(self, task: ShardTask[Any]) -> tuple[Commit, float]:
        with _temporary_folder() as folder:
            if not self._warm:
                self._make(replace(task, out=folder / "warm-up"))
                self._warm = True
            began = monotonic()
            commit = self._make(replace(task, out=folder / "timed")).commit
            return commit, monotonic() - began


@contextmanager
def _temporary_folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("dry-run")) as folder:
        yield Path(folder)
