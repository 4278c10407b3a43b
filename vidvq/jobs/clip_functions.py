"""Stages that make one sample of each clip by a function: what a user's own stage derives from.

    decoder (a process)      worker              function (a process)
    clip --frames, info-->   one clip at a time  --> function(frames, info) --files-->  tar, commit record

A crash or hang in either process costs one clip. Which clip fails for it is decided by repeating it, since a process
may be killed from outside.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import numpy as np
from pydantic import Field

from vidvq.corpus.frames import ClipFrames, DecodedClip, decode_clips
from vidvq.errors import UsageError, WorkerLost
from vidvq.formats.clip_shard import ClipInfo, read_infos
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard
from vidvq.formats.reuse import reusable_samples
from vidvq.formats.tar import check_member
from vidvq.jobs.local_clips import local_clips
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.shard_writer import OrderedShardWriter, Rejected, Sample
from vidvq.jobs.stage import Activity, ClipStage, ShardResult, ShardTask
from vidvq.jobs.timing import Stopwatch
from vidvq.runtime import Deaths, Feeder, Pool, RuntimeConfig, WorkerDied, describe_death
from vidvq.user_code import error_line
from vidvq.video.limits import MAX_DEADLINE_S

# Frames `t h w c` uint8 (0 to 255) and the clip's JSON to the files of its sample by extension.
ClipFunction: TypeAlias = Callable[[np.ndarray, ClipInfo], dict[str, bytes]]
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class ClipFunctionConfig:
    """Settings of stages that apply a function to clips; stages with more settings derive from it.

    Attributes:
        deadline_s: time limit of decoding one clip, and of one call of the function (seconds).
        where: expression over columns that selects clips; the others count as ``filtered(not_selected)``.
        gpus: GPUs of a worker; a fraction shares a GPU among workers.
        max_failed: maximum share of failed clips (0 to 1); above it the exit code is 1.
        runtime: execution of the job; does not affect the output.
    """

    where: str | None = None
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] = 600.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus % 1:
            raise UsageError(f"gpus={self.gpus:g} must be a fraction below 1, or a whole number")


@dataclass(frozen=True, kw_only=True)
class ClipFunctionStage(ClipStage):
    """A stage whose samples are made by a function of single clips.

    A subclass is a frozen dataclass with ``name``, ``prefix``, :meth:`identity` and :meth:`function`; where it has
    settings, also ``config_type``. It must be importable by name on every worker.
    """

    config: ClipFunctionConfig  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    config_type = ClipFunctionConfig
    activities = {  # noqa: RUF012 (a constant)
        "process": Activity("in the function"),
        "fetch": Activity("reading and checking clip shards", "storage that is nearer or faster"),
        "decode": Activity("waiting for decoded frames", "more CPUs for each worker"),
        "load": Activity("building the function", "fewer workers, or larger shards"),
    }
    thumbnail_count = 0

    @property
    def gpus(self) -> float:  # type: ignore[override] (a setting here)
        """GPUs of a worker."""
        return self.config.gpus

    @abstractmethod
    def function(self) -> ClipFunction:
        """Build the function, for example load a model; called once in each worker.

        The same clip must give the same files. An exception of the function fails its clip as ``function_error``.

        Raises:
            UsageError: the function cannot be built; the job ends.
        """

    def worker(self, pool: Pool) -> "ClipFunctionWorker":
        """Build the function that makes shards."""
        return ClipFunctionWorker(self)


class ClipFunctionWorker:
    """Makes shards; one per worker process."""

    def __init__(self, stage: ClipFunctionStage) -> None:
        self._stage = stage
        self._decoder, self._runner = Feeder(), Feeder()
        self._loaded = False
        self._clock = Stopwatch()

    def __call__(self, task: ShardTask[ClipRow]) -> ShardResult:
        """Make and commit a shard."""
        copied = dict[str, int]()
        with ExitStack() as stack:
            with self._clock.activity("fetch"):
                file = stack.enter_context(local_clips(self._stage.clips, task.rows[0]))
            with self._clock.activity("write"):
                fill = partial(self._fill, task, file, copied)
                commit = commit_shard(task.out, task.shard, task.plan_id, fill)
        return self._clock.result(commit, copied)

    def _fill(self, task: ShardTask[ClipRow], file: Path | None, copied: dict[str, int], draft: ShardDraft) -> None:
        writer = OrderedShardWriter(draft, [row.key for row in task.rows])
        for verdict, outcome in task.left_out():
            writer.put(Rejected(verdict, outcome))
        reused = reusable_samples(task.out, task.older, task.rows)
        for key, info in read_infos(file) if file and reused else ():
            if key in reused:
                copied["frames"] = copied.get("frames", 0) + info.num_frames
                writer.put(Sample(key, reused[key], {"frames": info.num_frames}))
        left = deque(row for row in task.rows if not row.outcome and row.key not in reused)
        deaths = Deaths(_TRIES)
        while left:
            assert file is not None
            if death := self._make(file, left, writer):
                if deaths.give_up(death, len(left)):
                    verdict = describe_death(death, "decoder_died", f"the decoder {self._crashed}")
                    self._reject(writer, left.popleft(), *verdict)
            elif left:
                raise UsageError(f"{file} lacks {left[0].key}, which was planned")

    def _make(self, file: Path, left: deque[ClipRow], writer: OrderedShardWriter) -> WorkerDied | None:
        """Make samples and remove each clip from ``left``; returns the death of the decoding process, if it died."""
        job = ClipFrames(file, frozenset(row.key for row in left))
        decoded = self._decoder.feed(decode_clips, job, self._stage.config.deadline_s)
        with closing(decoded):
            for clip in self._clock.waiting("decode", decoded):
                if isinstance(clip, WorkerDied):
                    return clip
                row = left.popleft()
                assert row.key == clip.key
                if clip.error:
                    writer.put(Rejected("failed", Outcome(row.key, clip.error.reason, clip.error.detail)))
                    continue
                made = self._call(clip)
                if isinstance(made, dict):
                    writer.put(Sample(row.key, made, {"frames": clip.info.num_frames}))
                else:
                    self._reject(writer, row, *made)
        return None

    def _call(self, clip: DecodedClip) -> dict[str, bytes] | tuple[str, str]:
        """The files of one clip, or the reason and detail of its failure."""
        deaths = Deaths(_TRIES)
        while True:
            self._load()
            with self._clock.activity("process"):
                made = _only(self._runner.feed(_call_function, clip, self._stage.config.deadline_s))
            if isinstance(made, FunctionError):
                return "function_error", made.line
            if not isinstance(made, WorkerDied):
                return made
            self._loaded = False
            if deaths.give_up(made):
                return describe_death(made, "function_died", f"the function {self._crashed}")

    def _load(self) -> None:
        """Build the function in its process, unless it is there.

        Raises:
            UsageError: it cannot be built.
            WorkerLost: its process dies of it.
        """
        tries = 0
        while not self._loaded:
            with self._clock.activity("load"):
                found = _only(self._runner.feed(_build_function, self._stage))
            if isinstance(found, FunctionError):
                raise UsageError(f"the function of vidvq {self._stage.name} cannot be built: {found.line}")
            self._loaded, tries = not isinstance(found, WorkerDied), tries + 1
            if not self._loaded and tries >= _TRIES:
                raise WorkerLost(
                    "the process that builds the function died; give each worker more memory, or use fewer workers"
                )

    def _reject(self, writer: OrderedShardWriter, row: ClipRow, reason: str, detail: str) -> None:
        writer.put(Rejected("failed", Outcome(row.key, reason, f"{row.key}: {detail}")))

    @property
    def _crashed(self) -> str:
        return f"crashed on it or ran past deadline_s={self._stage.config.deadline_s:g}"


@dataclass(frozen=True)
class FunctionError:
    """An exception of the user's code as one line, because exceptions of unknown types may not be picklable."""

    line: str

    @classmethod
    def of(cls, error: Exception) -> "FunctionError":
        """That of an exception; the message of a :class:`UsageError` is meant for the user."""
        return cls(str(error) if isinstance(error, UsageError) else error_line(error))


# The function of this process.
_functions: list[ClipFunction] = []


def _build_function(stage: ClipFunctionStage) -> Iterator[FunctionError | None]:
    try:
        _functions[:] = [stage.function()]
    except Exception as error:  # noqa: BLE001 (code of the user's own)
        yield FunctionError.of(error)
    else:
        yield None


def _call_function(clip: DecodedClip) -> Iterator[dict[str, bytes] | FunctionError]:
    assert clip.frames is not None
    try:
        made = _checked(_functions[0](clip.frames, clip.info), clip.key)
    except Exception as error:  # noqa: BLE001 (code of the user's own)
        yield FunctionError.of(error)
    else:
        yield made


def _checked(made: object, key: str) -> dict[str, bytes]:
    """What a user's function returned for a clip.

    Raises:
        UsageError: it is not the files of a sample: without one, the clip would be in no record.
    """
    files = cast(dict[object, object], made) if isinstance(made, dict) else None
    if not files or not all(isinstance(name, str) and isinstance(data, bytes) for name, data in files.items()):
        got = "an empty dict" if files == {} else type(cast(object, made)).__name__
        raise UsageError(f"returned {got}; it must be a dict of extensions to bytes")
    for extension in files:
        check_member(f"{key}.{extension}")
    return cast(dict[str, bytes], files)


def _only(results: Generator[Any, None, None]) -> Any:
    """The only result of a generator, exhausted so that its process can be reused; the death of a process after it."""
    *_, last = results
    return last
