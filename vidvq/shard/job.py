"""The sharding job: plan, then one idempotent unit of work per shard."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from vidvq.corpus.inputs import Source, list_sources
from vidvq.errors import WorkerLost
from vidvq.formats.clip_shard import parse_clip_info
from vidvq.formats.commit import Commit, Outcome, ShardDraft, commit_shard, read_commits
from vidvq.formats.plan import Plan
from vidvq.formats.reuse import reusable_samples
from vidvq.formats.summary import JobSummary, summarize
from vidvq.log import info, progress
from vidvq.runtime import Pool, WorkerDied, start
from vidvq.shard.config import ShardConfig
from vidvq.shard.cut import Cut, CutJob, cut_clips
from vidvq.shard.plan import plan_shards
from vidvq.shard.report import write_report
from vidvq.shard.shots import check_installed
from vidvq.storage import refuse_unwritable


@dataclass(frozen=True)
class ShardJob:
    """One shard to make; travels to a worker. ``older`` are the names it had before, whose clips may serve again."""

    out: Path
    shard: str
    plan_id: str
    rows: list[dict[str, Any]]
    config: ShardConfig
    pool: Pool
    older: list[tuple[str, int]] = field(default_factory=list)


def run_shard(inputs: list[str], out: Path, config: ShardConfig) -> JobSummary:
    """Cut videos into clip shards, or finish a job that was interrupted.

    Args:
        inputs: files, folders, globs, lists, tars of videos and URLs.
        out: the output directory.
        config: how.

    Raises:
        ValueError: a mistake in the arguments; nothing was changed.
        OSError: the disk is full or not writable; what was committed stays.
    """
    if config.cut.kind == "shots":
        check_installed()

    def sources() -> Iterable[Source]:
        return list_sources(inputs, config.lists)

    return make_shards(out, config, lambda pool: plan_shards(out, sources, config, pool))


def make_shards(out: Path, config: ShardConfig, plan_with: Callable[[Pool], Plan]) -> JobSummary:
    """Plan, make every shard that is not committed, and add up."""
    refuse_unwritable(out)
    with start(config.runtime) as pool:
        plan = plan_with(pool)
        items = plan.header["items"]
        videos = plan.header["made_from"]["inputs"]["count"]
        info(f"plan {plan.plan_id[:12]}: {items} items of {videos} videos in {plan.num_shards} shards")
        with progress("shard", items, "clips") as bar:

            def jobs() -> Iterator[ShardJob]:
                order = config.runtime.order(plan.num_shards)
                commits = read_commits(out, plan.shard_names(order))
                for index, (shard, rows), commit in zip(order, plan.shards(order), commits, strict=True):
                    if commit:
                        bar.advance(len(rows))
                    else:
                        older = plan.older(index)
                        yield ShardJob(out, shard, plan.id_of(index), rows, config, pool, older)

            for job, commit in pool.map(make_shard, jobs(), cpus=0, retries=3):
                if isinstance(commit, WorkerDied):
                    raise WorkerLost(f"{job.shard}: {commit.message}; run the same command again to go on")
                bar.advance(commit.items)
    summary = summarize(out, plan)
    write_report(out, plan, summary)
    return summary


def make_shard(job: ShardJob) -> Commit:
    """Cut the clips of one shard, each video in a worker of its own, and commit them."""

    def fill(draft: ShardDraft) -> None:
        reused = reusable_samples(job.out, job.older, job.rows)
        cuts = _cut(job, [row for row in job.rows if not row["verdict"] and row["key"] not in reused])
        for row in job.rows:
            if row["verdict"]:
                _leave_out(draft, row, row["verdict"], row["reason"], row["detail"])
            elif row["key"] in reused:
                files = reused[row["key"]]
                draft.add(row["key"], files, frames=parse_clip_info(files["json"], row["key"]).num_frames)
            else:
                cut = next(cuts)
                assert cut.key == row["key"]
                if cut.files is None:
                    _leave_out(draft, row, cut.verdict, cut.reason, cut.detail)
                else:
                    draft.add(cut.key, cut.files, frames=cut.num_frames)

    return commit_shard(job.out, job.shard, job.plan_id, fill)


def _leave_out(draft: ShardDraft, row: dict[str, Any], verdict: str, reason: str, detail: str) -> None:
    outcomes = draft.failed if verdict == "failed" else draft.filtered
    outcomes.append(Outcome(row["key"], reason, f"{row['uri']}: {detail}"))


def _cut(job: ShardJob, rows: list[dict[str, Any]]) -> Iterator[Cut]:
    def source(row: dict[str, Any]) -> tuple[str, str]:
        return row["uri"], row["version"]

    jobs = [CutJob(tuple(same), job.config) for _, same in groupby(rows, key=source)]
    # A worker may have been killed from outside: the whole is tried again first, which gives the same bytes.
    for cut, made in job.pool.map(cut_clips, jobs, deadline_s=job.config.limits.deadline_s, retries=2):
        yield from _rescue(job, cut) if isinstance(made, WorkerDied) else made


def _rescue(job: ShardJob, cut: CutJob) -> Iterator[Cut]:
    """After deaths: each clip by itself, so that one frame that kills costs one clip; then by the other decoder."""
    deadline_s = job.config.limits.deadline_s
    alone = [replace(cut, rows=(row,)) for row in cut.rows]
    for single, made in job.pool.map(cut_clips, alone, deadline_s=deadline_s, retries=1):
        if isinstance(made, WorkerDied) and job.config.clip.decoder != "pyav":
            other = [replace(single, decoders=("pyav",))]
            ((_, made),) = job.pool.map(cut_clips, other, deadline_s=deadline_s, retries=1)
        if isinstance(made, WorkerDied):
            detail = f"every decoder crashed on it or ran past limits.deadline_s={deadline_s:g}"
            made = [Cut(single.rows[0]["key"], None, verdict="failed", reason="decoder_died", detail=detail)]
        yield from made
