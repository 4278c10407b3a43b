"""Estimate of the output and the time of a job (``--dry-run``), from a sample made in a temporary folder."""

import random
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from time import monotonic
from typing import Any, Generic

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
        groups: the rows, by video or clip shard, each with the share of all frames that they stand for.
        probe_s: time to probe all inputs (seconds).
    """

    inputs: int
    probed: int
    items: int
    shards: int
    frames: int
    exact: bool
    groups: Sequence[tuple[float, Sequence[AnyRow]]]
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
        pool = runtime.pool(sample.shards)
        made = [each for each in _make(stage, sample.groups, pool) if each[1].ok]
        workers = max(min(pool.count_workers(stage.gpus), sample.shards), 1)
    # Scale by frames if the stage counts them, because clips differ in length; otherwise by items.
    by_frames = any(commit.stats.get("frames") for _, commit, _ in made)
    scale = (sample.frames if by_frames else sample.items) / (sum(share for share, _, _ in made) or 1.0)
    totals: dict[str, float] = dict.fromkeys(("bytes", "seconds"), 0.0)
    for share, commit, seconds in made:
        weight = scale * share / (commit.stats["frames"] if by_frames else commit.ok)
        counts = {name: count for name, count in commit.stats.items() if name in stage.totals}
        for name, amount in {"bytes": commit.bytes, "seconds": seconds, **counts}.items():
            totals[name] = totals.get(name, 0.0) + weight * amount
    size, work_s = totals.pop("bytes"), totals.pop("seconds")
    return Estimate(
        unit=stage.unit,
        inputs=sample.inputs,
        probed=sample.probed,
        items=sample.items,
        shards=sample.shards,
        stats={name: round(amount) for name, amount in totals.items()},
        bytes=round(size),
        left_out=sample.left_out,
        exact=sample.exact,
        sampled=sum(commit.ok for _, commit, _ in made),
        workers=workers,
        seconds=sample.probe_s + work_s / workers if made else None,
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
    videos = [list(found) for _, found in groupby(items, key=lambda row: row.source.identity)]
    lengths = [sum(row.num_frames for row in video) for video in videos]
    return _Sample(
        inputs=count,
        probed=len(sources),
        items=round(scale * len(items)),
        shards=-(-round(scale * len(rows)) // stage.per_shard),
        frames=round(scale * sum(row.num_frames for row in items)),
        exact=len(sources) == count,
        groups=[(share, stage.shorten(videos[index])) for index, share in _draw(lengths)],
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
    lengths = [
        commit.stats["frames"] * (len(rows[index]) if selection else commit.ok) // max(commit.ok, 1)
        for index, commit in enumerate(shards)
    ]
    groups = [
        (share, rows[index] if selection else list(rows_of(shards[index], index))) for index, share in _draw(lengths)
    ]
    return _Sample(
        inputs=len(shards),
        probed=len(shards),
        items=selected,
        shards=len(shards),
        frames=round(sum(commit.stats["frames"] for commit in shards) * selected / max(clips, 1)),
        exact=True,
        groups=[(share, group[:_CLIPS_PER_TASK]) for share, group in groups],
        left_out={NOT_SELECTED: clips - selected} if clips > selected else {},
    )


def _draw(lengths: Sequence[int]) -> list[tuple[int, float]]:
    """Draw one of each run of consecutive entries, which are alike, as of one folder: that with the run's middle frame.

    Args:
        lengths: number of frames of each entry.

    Returns:
        Index of each drawn entry, and its run's share of all frames.
    """
    count = min(_TASKS, len(lengths))
    drawn: list[tuple[int, float]] = []
    for first, end in pairwise(at * len(lengths) // max(count, 1) for at in range(count + 1)):
        ends = list(accumulate(lengths[first:end]))
        if ends[-1]:
            drawn.append((first + bisect_right(ends, ends[-1] // 2), ends[-1] / sum(lengths)))
    return drawn


def _make(
    stage: Stage[Any], groups: Sequence[tuple[float, Sequence[Any]]], pool: Pool
) -> list[tuple[float, Commit, float]]:
    """Make a shard of each group; return its share, record and time (seconds)."""
    tasks = [ShardTask(Path(), f"sample-{number}.tar", "", rows) for number, (_, rows) in enumerate(groups)]
    shares = {task.shard: share for task, (share, _) in zip(tasks, groups, strict=True)}
    made: list[tuple[float, Commit, float]] = []
    with progress("sample", len(tasks), "shards") as bar:
        for task, result in pool.map_stateful(
            partial(_TimedWorker, stage, pool), tasks, cpus=stage.cpus, gpus=stage.gpus
        ):
            bar.advance()
            if not isinstance(result, WorkerDied):
                made.append((shares[task.shard], *result))
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
