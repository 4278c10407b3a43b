"""Worker of the stages of `vidvq generate` that predict, interpolate or fill decoded frames.

    decoder (a process)      worker
    item --messages-->       frames to a prompt --batches--> network --files-->  tar, commit record

A crash or hang of the decoder costs one item.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias

import numpy as np

from vidvq.corpus.frames import ClipFrames, DecodeMessage, ItemInfo, VideoFrames, decode_items
from vidvq.errors import UsageError
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard
from vidvq.generate.conditions import ClipCondition
from vidvq.generate.stages.batches import Batches, begin_shard
from vidvq.jobs.shard_writer import OrderedShardWriter, Rejected
from vidvq.jobs.stage import AnyRow, ShardResult, ShardTask
from vidvq.jobs.timing import Stopwatch
from vidvq.runtime import Deaths, Feeder, WorkerDied, describe_death
from vidvq.video import VideoError

if TYPE_CHECKING:
    from vidvq.generate.sampling.pipeline import GenerationPipeline, PendingSample

# Returns the decoding job of some rows.
FramesJobOf: TypeAlias = Callable[[Sequence[AnyRow]], ClipFrames | VideoFrames]


class PixelStage(Protocol[AnyRow]):
    """A stage whose prompts are decoded frames."""

    @property
    def decode_deadline_s(self) -> float:
        """Time limit of decoding one item (seconds)."""
        ...

    def open_frames(self, task: ShardTask[AnyRow]) -> AbstractContextManager[FramesJobOf[AnyRow]]:
        """Open the inputs of a shard; yields the function that returns the decoding job of some of its rows."""
        ...

    def conditions_of(self, key: str) -> ClipCondition:
        """Return the conditions of an item."""
        ...


class PixelWorker(Generic[AnyRow]):
    """Generates shards.

    Args:
        record: takes the decoded rows of a shard and the failed items; may stop the job.
    """

    def __init__(
        self,
        stage: PixelStage[AnyRow],
        pipeline: "GenerationPipeline",
        record: Callable[[Sequence[AnyRow], Sequence[Outcome]], None] = lambda rows, failed: None,
    ) -> None:
        self._stage, self._pipeline, self._record = stage, pipeline, record
        self._feeder, self._clock = Feeder(), Stopwatch()

    def __call__(self, task: ShardTask[AnyRow]) -> ShardResult:
        """Generate and commit a shard."""
        copied = dict[str, int]()
        with ExitStack() as stack:
            with self._clock.activity("fetch"):
                frames_job = stack.enter_context(self._stage.open_frames(task))
            with self._clock.activity("write"):
                fill = partial(self._fill, task, frames_job, copied)
                commit = commit_shard(task.out, task.shard, task.plan_id, fill)
        return self._clock.result(commit, copied)

    def _fill(
        self, task: ShardTask[AnyRow], frames_job: FramesJobOf[AnyRow], copied: dict[str, int], draft: ShardDraft
    ) -> None:
        writer, rows = begin_shard(task, draft, copied)
        left, deaths, batches = deque(rows), Deaths(), Batches(self._pipeline, writer)
        while left:
            death = self._take(frames_job, left, batches, writer)
            if death and deaths.give_up(death, len(left)):
                row = left.popleft()
                detail = "the decoder crashed on it or ran past its deadline"
                reason, detail = describe_death(death, "decoder_died", detail)
                writer.put(Rejected("failed", Outcome(row.key, reason, f"{row.origin}: {detail}")))
        with self._clock.activity("process"):
            batches.flush()
        self._record(rows, draft.failed)

    def _take(
        self,
        frames_job: FramesJobOf[AnyRow],
        left: deque[AnyRow],
        batches: "Batches[PendingSample]",
        writer: OrderedShardWriter,
    ) -> WorkerDied | None:
        """Decode the items ``left`` and remove each; returns the death of the decoder, if it died."""
        decoded = self._feeder.feed(decode_items, frames_job(tuple(left)), self._stage.decode_deadline_s)
        with closing(decoded):
            messages = self._clock.waiting("decode", decoded)
            for first in messages:
                item = first if isinstance(first, WorkerDied) else _collect(first, messages)
                if isinstance(item, WorkerDied):
                    return item
                assert isinstance(first, DecodeMessage)
                if first.key != left[0].key:
                    break
                row = left.popleft()
                if isinstance(item, VideoError):
                    writer.put(Rejected("failed", Outcome(row.key, item.reason, item.detail)))
                    continue
                with self._clock.activity("process"):
                    frames, info = item
                    conditions = self._stage.conditions_of(row.key)
                    batches.add(row, partial(self._pipeline.from_pixels, row.key, frames, info, conditions))
        if left:
            raise UsageError(f"{left[0].origin} lacks {left[0].key}, which was planned")
        return None


def _collect(
    first: DecodeMessage, messages: Iterator[DecodeMessage | WorkerDied]
) -> "tuple[np.ndarray, ItemInfo] | VideoError | WorkerDied":
    """Collect the frames and metadata of one item, or its error, or the death of the decoder."""
    chunks: list[np.ndarray] = []
    for message in chain([first], messages):
        if isinstance(message, WorkerDied):
            return message
        if message.error:
            return message.error
        if message.frames is not None:
            chunks.append(message.frames)
        if message.done:
            assert first.info is not None
            return np.concatenate(chunks), first.info
    raise AssertionError("an item without an end")
