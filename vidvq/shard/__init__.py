"""`vidvq shard`: videos to clip shards."""

from pathlib import Path

from vidvq.formats.summary import JobSummary
from vidvq.jobs import run_job
from vidvq.shard.config import ShardConfig
from vidvq.shard.stage import ShardStage

__all__ = ["ShardConfig", "ShardStage", "run_shard"]


def run_shard(inputs: list[str], out: Path, config: ShardConfig) -> JobSummary:
    """Cut videos into clip shards, or finish a job that was interrupted; see :func:`vidvq.jobs.run_job`."""
    return run_job(ShardStage(config=config), inputs, out)
