"""`vidvq tokenize`: clip shards or raw video to token shards."""

from pathlib import Path

from vidvq.formats.summary import JobSummary
from vidvq.jobs import run_job
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.stage import TokenizeClips, TokenizeVideos, open_stage

__all__ = ["TokenizeClips", "TokenizeConfig", "TokenizeVideos", "open_stage", "run_tokenize"]


def run_tokenize(sources: list[str], checkpoint: Path, out: Path, config: TokenizeConfig) -> JobSummary:
    """Tokenize clip shards or raw video, or resume an interrupted job.

    Args:
        sources: a finished directory of ``vidvq shard``; or video files, folders, globs, lists and URLs.
        checkpoint: a checkpoint, or a training run.

    Returns:
        The outcomes of all planned items, and totals.

    Raises:
        UsageError: a mistake in the arguments; nothing was changed.
        JobStopped: a quality gate ended the job; committed shards stay.
        OSError: the disk is full or not writable; committed shards stay.
    """
    stage = open_stage(sources, checkpoint, config)
    return run_job(stage, sources, out)
