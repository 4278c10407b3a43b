"""The worker of `vidvq shard`: one call on the pool for each video of a shard, so that a crash costs one video."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby

from vidvq.formats.clip_shard import parse_clip_info
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard
from vidvq.formats.reuse import reusable_samples
from vidvq.jobs.access import AccessWatch
from vidvq.jobs.shard_writer import OrderedShardWriter, Rejected, Sample
from vidvq.jobs.stage import ShardResult, ShardTask
from vidvq.jobs.timing import Stopwatch
from vidvq.runtime import Pool, WorkerDied, describe_death
from vidvq.shard.config import ShardConfig
from vidvq.shard.cut import Cut, CutJob, CutResult, cut_clips
from vidvq.shard.rows import PlannedClip

# A worker may be killed from outside; repeating the whole job gives the same bytes.
_RETRIES = 2


class ClipShardWorker:
    """Makes clip shards."""

    def __init__(self, config: ShardConfig, pool: Pool) -> None:
        self._config, self._pool = config, pool
        self._from_nvdec = 0
        self._gpus = config.runtime.gpus_per_worker if config.clip.decoder == "nvdec" else 0
        self._clock = Stopwatch()
        self._access = AccessWatch(config.lists.allow_private, config.limits.allow_denied)

    def __call__(self, task: ShardTask[PlannedClip]) -> ShardResult:
        """Make and commit a shard."""
        copied = dict[str, int]()
        self._from_nvdec = 0
        with self._clock.activity("write"):
            commit = commit_shard(task.out, task.shard, task.plan_id, partial(self._fill, task, copied))
        return self._clock.result(commit, copied, self._from_nvdec if self._config.clip.decoder == "nvdec" else None)

    def _fill(self, task: ShardTask[PlannedClip], copied: dict[str, int], draft: ShardDraft) -> None:
        writer = OrderedShardWriter(draft, (row.key for row in task.rows))
        for verdict, outcome in task.left_out():
            writer.put(Rejected(verdict, outcome))
        reused = reusable_samples(task.out, task.older, task.rows)
        for key, files in reused.items():
            frames = parse_clip_info(files["json"], key).num_frames
            copied["frames"] = copied.get("frames", 0) + frames
            writer.put(Sample(key, files, {"frames": frames}))
        rows = [row for row in task.rows if not row.outcome and row.key not in reused]
        for row, cut in zip(rows, self._cut(rows), strict=True):
            assert cut.key == row.key
            if cut.files is None:
                writer.put(Rejected(cut.verdict, Outcome(row.key, cut.reason, f"{row.origin}: {cut.detail}")))
            else:
                self._from_nvdec += cut.num_frames * cut.from_nvdec
                writer.put(Sample(cut.key, cut.files, {"frames": cut.num_frames}))
        self._access.record_shard(rows, draft.failed)

    def _cut(self, rows: list[PlannedClip]) -> Iterator[Cut]:
        """Yield the outcomes of all rows, in order. The clips of one video are cut in one pass over it."""
        # A URL without a version may have changed from one of its ranges to the next, while they were planned.
        videos = groupby(rows, key=lambda row: (row.source.uri, row.source.version, row.sha256))
        jobs = [CutJob(tuple(same), self._config) for _, same in videos]
        results = self._map(jobs, _RETRIES)
        for job, result in self._clock.waiting("wait", results):
            yield from self._rescue(job) if isinstance(result, WorkerDied) else self._take(result)

    def _map(self, jobs: list[CutJob], retries: int) -> Iterator[tuple[CutJob, CutResult | WorkerDied]]:
        deadline_s = self._config.limits.deadline_s
        return self._pool.map(cut_clips, jobs, gpus=self._gpus, deadline_s=deadline_s, retries=retries)

    def _rescue(self, job: CutJob) -> Iterator[Cut]:
        """Cut each clip alone after a crash, so that a fatal frame costs one clip; then retry with PyAV."""
        deadline_s = self._config.limits.deadline_s
        alone = [replace(job, rows=(row,)) for row in job.rows]
        for single, result in self._map(alone, 1):
            if isinstance(result, WorkerDied) and self._config.clip.decoder != "pyav":
                other = [replace(single, decoders=("pyav",))]
                ((_, result),) = self._map(other, 1)
            if isinstance(result, WorkerDied):
                detail = f"every decoder crashed on it or ran past limits.deadline_s={deadline_s:g}"
                reason, detail = describe_death(result, "decoder_died", detail)
                yield Cut(single.rows[0].key, None, verdict="failed", reason=reason, detail=detail)
            else:
                yield from self._take(result)

    def _take(self, result: CutResult) -> list[Cut]:
        self._clock.move(result.seconds, "wait", "cut")
        return result.cuts
