"""`vidvq shard`: videos to clip shards."""

from pathlib import Path

from vidvq.formats.summary import JobSummary
from vidvq.jobs import run_job
from vidvq.shard.config import ShardConfig
from vidvq.shard.stage import ShardStage

__all__ = ["ShardConfig", "ShardStage", "run_shard"]


def run_shard(inputs: list[str], out: Path, config: ShardConfig) -> JobSummary:
    """Cut videos into clip shards, or resume an interrupted job.

    Args:
        inputs: video files, folders, globs, lists and URLs.

    Returns:
        The outcomes of all planned items, and totals.

    Raises:
        UsageError: a mistake in the arguments; nothing was changed.
        WorkerLost: a worker died more often than it is restarted; committed shards stay.
        OSError: the disk is full or not writable; committed shards stay.
    """
    return run_job(ShardStage(config=config), inputs, out)
