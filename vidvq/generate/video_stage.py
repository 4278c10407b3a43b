"""Stage of `vidvq generate` whose inputs are videos: their first frames are continued, interpolated or filled."""

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidvq.config import to_dict
from vidvq.corpus.fetch import as_video_error
from vidvq.corpus.frames import DecodeMessage, ItemInfo, VideoFrames, decode_items, sample_video
from vidvq.corpus.source import Source
from vidvq.errors import UsageError
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard
from vidvq.formats.keys import item_key, video_key
from vidvq.formats.reuse import reusable_samples
from vidvq.generate.requests import InputConfig, PredictConfig
from vidvq.generate.stage import GenerateStage
from vidvq.jobs.rows import VideoRow
from vidvq.jobs.shard_writer import OrderedShardWriter, Rejected, Sample
from vidvq.jobs.stage import Activity, ShardResult, ShardTask, VideoStage
from vidvq.jobs.timing import Stopwatch
from vidvq.runtime import Deaths, Feeder, Pool, WorkerDied, describe_death
from vidvq.video import VideoError
from vidvq.video.policy import VideoPolicy

if TYPE_CHECKING:
    from vidvq.generate.pipeline import GenerationPipeline

# Clips may have any length up to that of the longest training samples.
_CUT = "make a clip of it with vidvq shard (clip.num_frames=, clip.min_frames=) and pass that"


@dataclass(frozen=True, kw_only=True)
class GenerateVideos(GenerateStage[VideoRow], VideoStage[VideoRow]):
    """Predicts, interpolates or fills the first frames of videos.

    Attributes:
        frames: number of frames to use of each video.
        video: frame rate and size of the frames.
    """

    config: InputConfig  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    config_type = InputConfig
    tokenizer: Path
    frames: int
    video: VideoPolicy
    row = VideoRow
    unit = "videos"
    totals = ("samples",)
    activities = {  # noqa: RUF012 (a constant)
        "process": Activity("generating"),
        "decode": Activity("waiting for decoded frames", "more CPUs for each worker"),
    }

    @property
    def per_shard(self) -> int:
        """Number of videos per shard."""
        return self.config.items_per_shard

    def identity(self) -> dict[str, Any]:
        """Return what the samples depend on; includes the choice of frames."""
        config = self.config
        used = {"frames_used": self.frames, "video": to_dict(self.video), "lists": config.lists.identity()}
        used |= {"limits": config.limits.identity(), "items_per_shard": config.items_per_shard}
        return super().identity() | used

    def probe(self, source: Source) -> list[VideoRow]:
        """Probe a video; return its row, which records a failure instead of raising."""
        try:
            config = self.config
            _, digest, _, ranges = sample_video(source, self.video, config.limits, config.lists.allow_private)
            begin, end = ranges[0] if ranges else (0, 0)
            if end - begin < self.frames:
                remedy = "set given= to less" if isinstance(config, PredictConfig) else _CUT
                raise VideoError(
                    "too_short", f"has {end - begin} frames; {self.frames} are needed; use a longer video, or {remedy}"
                )
        except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
            failure = as_video_error(error)
            return [self.reject(source, failure.reason, failure.detail)]
        key = item_key(video_key(source.identity), 0)
        return [VideoRow(key=key, source=source, sha256=digest, first=begin, num_frames=self.frames)]

    def reject(self, source: Source, reason: str, detail: str) -> VideoRow:
        """Return the row of a failed video."""
        return VideoRow(key=item_key(video_key(source.identity), 0), source=source, reason=reason, detail=detail)

    def worker(self, pool: Pool) -> "GenerateVideosWorker":
        """Build a worker in the current process."""
        from vidvq.generate.pipeline import GenerationPipeline

        return GenerateVideosWorker(self, GenerationPipeline(self.generator, self.config, self.tokenizer))


class GenerateVideosWorker:
    """Generates shards."""

    def __init__(self, stage: GenerateVideos, pipeline: "GenerationPipeline") -> None:
        self._stage, self._pipeline, self._feeder, self._clock = stage, pipeline, Feeder(), Stopwatch()
        self._access = stage.access_watch()

    def __call__(self, task: ShardTask[VideoRow]) -> ShardResult:
        """Generate and commit a shard."""
        copied = dict[str, int]()
        with self._clock.activity("write"):
            commit = commit_shard(task.out, task.shard, task.plan_id, partial(self._fill, task, copied))
        return self._clock.result(commit, copied)

    def _fill(self, task: ShardTask[VideoRow], copied: dict[str, int], draft: ShardDraft) -> None:
        writer = OrderedShardWriter(draft, [row.key for row in task.rows])
        for verdict, outcome in task.left_out():
            writer.put(Rejected(verdict, outcome))
        reused = reusable_samples(task.out, task.older, task.rows)
        for key, files in reused.items():
            copied["samples"] = copied.get("samples", 0) + 1
            writer.put(Sample(key, files, {"samples": 1}))
        rows = [row for row in task.rows if not row.outcome and row.key not in reused]
        left = deque(rows)
        deaths = Deaths()
        while left:
            if (death := self._make(left, writer)) and deaths.give_up(death, len(left)):
                row = left.popleft()
                detail = "the decoder crashed on it or ran past its deadline"
                reason, detail = describe_death(death, "decoder_died", detail)
                writer.put(Rejected("failed", Outcome(row.key, reason, f"{row.origin}: {detail}")))
        self._access.record_shard(rows, draft.failed)

    def _make(self, left: "deque[VideoRow]", writer: OrderedShardWriter) -> WorkerDied | None:
        """Generate samples and remove each finished video from ``left``; return its decoder's death, if any."""
        config = self._stage.config
        job = VideoFrames(tuple(left), self._stage.video, config.limits, self._stage.frames, config.lists.allow_private)
        with closing(self._feeder.feed(decode_items, job, self._stage.deadline_s)) as decoded:
            messages = self._clock.waiting("decode", decoded)
            for first in messages:
                item = first if isinstance(first, WorkerDied) else _collect(first, messages)
                if isinstance(item, WorkerDied):
                    return item
                row = left.popleft()
                assert isinstance(first, DecodeMessage) and row.key == first.key
                writer.put(self._sample(row, item))
        return None

    def _sample(self, row: VideoRow, item: "tuple[np.ndarray, ItemInfo] | VideoError") -> Sample | Rejected:
        if isinstance(item, VideoError):
            return Rejected("failed", Outcome(row.key, item.reason, item.detail))
        try:
            with self._clock.activity("process"):
                return Sample(row.key, self._pipeline.from_pixels(*item), {"samples": 1})
        except UsageError as error:
            return Rejected("failed", Outcome(row.key, "bad_prompt", f"{row.origin}: {error}"))


def _collect(
    first: DecodeMessage, messages: Iterator[DecodeMessage | WorkerDied]
) -> "tuple[np.ndarray, ItemInfo] | VideoError | WorkerDied":
    """Collect the frames and metadata of one item, or its error, or the death of the decoder."""
    if first.error:
        return first.error
    assert first.info is not None
    chunks: list[np.ndarray] = []
    for message in messages:
        if isinstance(message, WorkerDied):
            return message
        if message.error:
            return message.error
        if message.done:
            return np.concatenate(chunks), first.info
        assert message.frames is not None
        chunks.append(message.frames)
    raise AssertionError("an item without an end")
