"""`vidvq shard`: videos to clip shards."""

from collections.abc import Sequence
from pathlib import Path

from vidvq.arguments import as_list
from vidvq.config import checked
from vidvq.formats.summary import JobSummary
from vidvq.jobs import run_job
from vidvq.shard.config import ShardConfig
from vidvq.shard.stage import ShardStage
from vidvq.storage import resolve_path

__all__ = ["ShardConfig", "ShardStage", "run_shard"]


def run_shard(inputs: Sequence[str | Path], out: str | Path, config: ShardConfig) -> JobSummary:
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
    config = checked(ShardConfig, config)
    return run_job(ShardStage(config=config), as_list("inputs", inputs, "paths and URLs"), resolve_path(out))
