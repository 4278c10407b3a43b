"""Stages of `vidvq generate` whose prompts are frames: of clip shards, or the first ones of videos."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidvq.config import to_dict
from vidvq.corpus.fetch import as_video_error
from vidvq.corpus.frames import ClipFrames, VideoFrames, sample_video
from vidvq.corpus.source import Source
from vidvq.formats.keys import item_key, video_key
from vidvq.generate.conditions import NO_CONDITION, ClipCondition, ClipConditions
from vidvq.generate.requests import InputConfig, PredictConfig
from vidvq.generate.stages.pixel_worker import FramesJobOf, PixelWorker
from vidvq.generate.stages.token_stage import GenerateStage
from vidvq.jobs.local_clips import local_clips
from vidvq.jobs.rows import ClipRow, VideoRow
from vidvq.jobs.stage import Activity, ClipStage, ShardTask, VideoStage
from vidvq.log import counted
from vidvq.runtime import Pool
from vidvq.video import VideoError
from vidvq.video.policy import VideoPolicy

_ACTIVITIES = {
    "process": Activity("generating"),
    "decode": Activity("waiting for decoded frames", "more CPUs for each worker"),
}
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
    activities = _ACTIVITIES

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
                    "too_short",
                    f"has {counted(end - begin, 'frames')}; {self.frames} are needed; use a longer video, or {remedy}",
                )
        except Exception as error:  # noqa: BLE001 (counted and named, by as_video_error)
            failure = as_video_error(error)
            return [self.reject(source, failure.reason, failure.detail)]
        key = item_key(video_key(source.identity), 0)
        return [VideoRow(key=key, source=source, sha256=digest, first=begin, num_frames=self.frames)]

    def reject(self, source: Source, reason: str, detail: str) -> VideoRow:
        """Return the row of a failed video."""
        return VideoRow(key=item_key(video_key(source.identity), 0), source=source, reason=reason, detail=detail)

    def worker(self, pool: Pool) -> PixelWorker[VideoRow]:
        """Build a worker in the current process."""
        return PixelWorker(self, self.pipeline(self.tokenizer), self.access_watch().record_shard)

    @property
    def decode_deadline_s(self) -> float:
        """Time limit of decoding one video (seconds)."""
        return self.deadline_s

    @contextmanager
    def open_frames(self, task: ShardTask[VideoRow]) -> Iterator[FramesJobOf[VideoRow]]:
        """Return what decodes videos; it opens them itself."""
        config = self.config

        def frames_job(rows: Sequence[VideoRow]) -> VideoFrames:
            return VideoFrames(tuple(rows), self.video, config.limits, self.frames, config.lists.allow_private)

        yield frames_job

    def conditions_of(self, key: str) -> ClipCondition:
        """Return no conditions but those of the request."""
        return NO_CONDITION


@dataclass(frozen=True, kw_only=True)
class GenerateClips(GenerateStage[ClipRow], ClipStage):
    """Predicts, interpolates or fills the clips of clip shards.

    Attributes:
        conditions: conditions by clip key.
    """

    config: InputConfig  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    config_type = InputConfig
    tokenizer: Path
    conditions: ClipConditions = field(default_factory=ClipConditions)
    row = ClipRow
    unit = "clips"
    totals = ("samples",)
    activities = _ACTIVITIES | {
        "fetch": Activity("reading and checking clip shards", "storage that is nearer or faster"),
    }

    def identity(self) -> dict[str, Any]:
        """Return what the samples depend on; includes the conditions."""
        return super().identity() | self.conditions.identity()

    def worker(self, pool: Pool) -> PixelWorker[ClipRow]:
        """Build a worker in the current process."""
        return PixelWorker(self, self.pipeline(self.tokenizer))

    @property
    def decode_deadline_s(self) -> float:
        """Time limit of decoding one clip (seconds)."""
        return self.config.deadline_s

    @contextmanager
    def open_frames(self, task: ShardTask[ClipRow]) -> Iterator[FramesJobOf[ClipRow]]:
        """Open the clip shard that a shard is made from."""
        with local_clips(self.clips, task.rows[0]) as file:

            def frames_job(rows: Sequence[ClipRow]) -> ClipFrames:
                assert file is not None
                return ClipFrames(file, frozenset(row.key for row in rows))

            yield frames_job

    def conditions_of(self, key: str) -> ClipCondition:
        """Return the conditions of a clip."""
        return self.conditions.of(key)
