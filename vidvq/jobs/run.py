"""The corpus job: plan, make every shard that is not committed, account for every item.

    inputs --plan--> plan.json, plan.parquet
    plan --tasks--> workers --> SHARD.tar, commits/SHARD.json     (in any order, by any number of drivers)
    commits --summary--> summary.json, report.html, metrics.json

A shard is made by one worker and committed once, whoever else tries. A job that is killed, or whose machine fails,
resumes with the same command; what is committed stays.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vidvq.errors import JobStopped, WorkerLost
from vidvq.formats.commit import observe_items, read_commits
from vidvq.formats.plan import Plan, write_files
from vidvq.formats.summary import JobSummary, refuse_older_plan, refuse_other_plan, summarize, summarize_update
from vidvq.jobs.plan_clips import plan_clips
from vidvq.jobs.plan_listed import plan_listed
from vidvq.jobs.plan_videos import plan_videos
from vidvq.jobs.report import write_report
from vidvq.jobs.stage import AnyRow, ClipStage, ListedStage, Monitor, ShardTask, Stage, VideoStage
from vidvq.jobs.telemetry import ProgressNote, Telemetry
from vidvq.jobs.timing import TimeAccounting
from vidvq.jobs.update import CorpusUpdate, retry_rows, update_videos
from vidvq.log import ProgressBar, counted, info, progress
from vidvq.runtime import Runtime, WorkerDied, open_runtime
from vidvq.storage import check_writable, sweep


def run_job(stage: Stage[AnyRow], inputs: list[str], out: Path, update: CorpusUpdate | None = None) -> JobSummary:
    """Run a stage over its inputs, or finish a run that was interrupted.

    Args:
        inputs: videos for a :class:`VideoStage`, and the added ones for an update; a :class:`ClipStage` knows its own.
        update: an update of the corpus that is in ``out``; None for the first run and for resuming.

    Returns:
        The summary of all items; of an update, a :class:`vidvq.formats.summary.UpdateSummary`.

    Raises:
        UsageError: a mistake in the arguments; nothing was changed.
        JobStopped: a quality gate ended the job; committed shards stay.
        WorkerLost: a worker died more often than it is restarted; committed shards stay.
        OSError: the disk is full or not writable; committed shards stay.
    """
    stage.check()
    sweep()
    check_writable(out)
    with open_runtime(stage.config.runtime) as runtime:
        stage = stage.prepare(out, runtime)
        plan = _plan(stage, inputs, out, update, runtime)
        info(f"plan {plan.plan_id[:12]}: {counted(plan.num_items, stage.unit)} in {counted(plan.num_shards, 'shards')}")
        write_files(out, plan, stage.files())
        try:
            made = _make_shards(stage, plan, out, runtime)
        except FileNotFoundError:
            # Another driver may have changed the corpus, and deleted the temporary files of this one.
            refuse_older_plan(out, plan)
            raise
        summary = summarize_update(out, plan, made) if update else summarize(out, plan)
        write_report(stage, plan, summary, out)
    return summary


def _plan(stage: Stage[Any], inputs: list[str], out: Path, update: CorpusUpdate | None, runtime: Runtime) -> Plan:
    if isinstance(stage, VideoStage):
        return update_videos(stage, update, out, runtime) if update else plan_videos(stage, inputs, out, runtime)
    if isinstance(stage, ListedStage):
        return retry_rows(stage, update, out) if update else plan_listed(stage, out)
    assert isinstance(stage, ClipStage), f"{type(stage).__name__} must be a VideoStage, a ClipStage or a ListedStage"
    return retry_rows(stage, update, out) if update else plan_clips(stage, out)


def _make_shards(stage: Stage[AnyRow], plan: Plan, out: Path, runtime: Runtime) -> bool:
    """Make the shards that are not committed, and return whether there were any."""
    note, monitor, accounting = ProgressNote(), stage.monitor(), TimeAccounting()
    try:
        # Shards that this process makes, without Ray, are counted item by item.
        with progress(stage.name, plan.num_items, stage.unit) as bar, observe_items(bar.count_ahead):
            tasks = _tasks(stage, plan, out, monitor, note, bar)
            # Two tasks are enough to see whether there is work for more than one worker.
            first = list(islice(tasks, 2))
            if not first:
                return False
            pool = runtime.pool(stage.units(first))
            accounting, telemetry = TimeAccounting(), Telemetry(stage, pool)
            worker = partial(stage.worker, pool)
            results = pool.map_stateful(
                worker, chain(first, tasks), cpus=stage.cpus, gpus=stage.gpus, lookahead=stage.lookahead
            )
            for task, result in results:
                if isinstance(result, WorkerDied):
                    raise WorkerLost(f"{task.shard}: {result.message}; run the same command again to resume")
                accounting.add(result)
                telemetry.publish(result, accounting.report(stage, monitor).efficiency)
                bar.advance(result.commit.items, note.made(result))
                monitor.on_result(result)
                monitor.on_commit(result.commit)
    except (JobStopped, WorkerLost, OSError):
        # The metrics help to find what ended the job. If it was the disk, they cannot be written either.
        with suppress(OSError):
            _report_metrics(stage, accounting, monitor, out)
        raise
    _report_metrics(stage, accounting, monitor, out)
    return True


def _tasks(
    stage: Stage[AnyRow], plan: Plan, out: Path, monitor: Monitor, note: ProgressNote, bar: ProgressBar
) -> Iterator[ShardTask[AnyRow]]:
    """Yield the shards that are not committed, in this driver's order of work."""
    order = stage.config.runtime.order(plan.num_shards)
    commits = read_commits(out, plan.shard_names(order))
    for index, (shard, rows), commit in zip(order, plan.shards(stage.row, order), commits, strict=True):
        if commit:
            refuse_other_plan(out, plan, index, commit)
            monitor.on_commit(commit)
            bar.advance(len(rows), note.committed(commit), earlier=True)
        else:
            yield ShardTask(out, shard, plan.id_of(index), rows, plan.older(index))


def _report_metrics(stage: Stage[AnyRow], accounting: TimeAccounting, monitor: Monitor, out: Path) -> None:
    metrics = accounting.report(stage, monitor)
    if metrics.workers:
        metrics.write(out)
    for line in metrics.lines():
        info(line)
