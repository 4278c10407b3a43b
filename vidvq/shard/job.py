"""The sharding job: plan, then one idempotent unit of work per shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from vidvq.formats.commit import Commit, Outcome, ShardDraft, commit_shard, read_commit
from vidvq.formats.summary import JobSummary, summarize
from vidvq.log import info, progress
from vidvq.runtime import Pool, WorkerDied, start
from vidvq.shard.config import ClipPolicy, ShardConfig
from vidvq.shard.cut import Cut, CutJob, cut_clips
from vidvq.shard.inputs import list_sources
from vidvq.shard.plan import plan_shards
from vidvq.video.probe import Limits


@dataclass(frozen=True)
class ShardJob:
    """One shard to make; travels to a worker."""

    out: Path
    shard: str
    plan_id: str
    rows: list[dict[str, Any]]
    policy: ClipPolicy
    limits: Limits
    pool: Pool


def run_shard(videos: list[str], out: Path, config: ShardConfig) -> JobSummary:
    """Cut videos into clip shards, or finish a job that was interrupted.

    Args:
        videos: files and directories.
        out: the output directory.
        config: how.

    Raises:
        ValueError: a mistake in the arguments; nothing was changed.
        OSError: the disk is full or not writable; what was committed stays.
    """
    sources = list_sources(videos)
    with start(config.runtime) as pool:
        plan = plan_shards(out, sources, config, pool)
        items = plan.header["items"]
        info(f"plan {plan.plan_id[:12]}: {items} items of {len(sources)} videos in {plan.num_shards} shards")
        with progress("shard", items, "clips") as bar:
            jobs: list[ShardJob] = []
            for shard, rows in plan.shards():
                if read_commit(out, shard):
                    bar.advance(len(rows))
                else:
                    jobs.append(ShardJob(out, shard, plan.plan_id, rows, config.clip, config.limits, pool))
            for job, commit in pool.map(make_shard, jobs, cpus=0, retries=3):
                if isinstance(commit, WorkerDied):
                    raise OSError(f"{job.shard}: {commit.message}; run the same command again to go on")
                bar.advance(commit.items)
    return summarize(out, plan)


def make_shard(job: ShardJob) -> Commit:
    """Cut the clips of one shard, each video in a worker of its own, and commit them."""

    def fill(draft: ShardDraft) -> None:
        for row in job.rows:
            if row["verdict"]:
                verdicts = draft.failed if row["verdict"] == "failed" else draft.filtered
                verdicts.append(Outcome(row["key"], row["reason"], f"{row['uri']}: {row['detail']}"))
        for key, made, num_frames in _cut(job):
            if isinstance(made, Outcome):
                uri = next(row["uri"] for row in job.rows if row["key"] == key)
                draft.failed.append(Outcome(key, made.reason, f"{uri}: {made.detail}"))
            else:
                draft.add(key, made, frames=num_frames)

    return commit_shard(job.out, job.shard, job.plan_id, fill)


def _cut(job: ShardJob) -> Iterator[Cut]:
    to_cut = [row for row in job.rows if not row["verdict"]]
    jobs = [
        CutJob(uri, tuple(rows), job.policy, job.limits)
        for uri, rows in ((uri, list(rows)) for uri, rows in groupby(to_cut, key=lambda row: row["uri"]))
    ]
    for cut, made in job.pool.map(cut_clips, jobs, deadline_s=job.limits.deadline_s):
        yield from _rescue(job, cut) if isinstance(made, WorkerDied) else made


def _rescue(job: ShardJob, cut: CutJob) -> Iterator[Cut]:
    """After a death: each clip by itself, by the other decoder, so that one frame that kills costs one clip."""
    alone = [CutJob(cut.uri, (row,), cut.policy, cut.limits, decoders=("pyav",)) for row in cut.rows]
    for single, made in job.pool.map(cut_clips, alone, deadline_s=job.limits.deadline_s):
        if isinstance(made, WorkerDied):
            key = single.rows[0]["key"]
            detail = f"every decoder crashed on it or ran past limits.deadline_s={job.limits.deadline_s:g}"
            made = [(key, Outcome(key, "decoder_died", detail), 0)]
        yield from made
