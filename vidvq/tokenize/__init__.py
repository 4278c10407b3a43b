"""`vidvq tokenize`: clip shards or raw video to token shards."""

from collections.abc import Sequence
from pathlib import Path

from vidvq.arguments import as_list
from vidvq.config import checked
from vidvq.formats.checkpoint import resolve_checkpoint
from vidvq.formats.summary import JobSummary
from vidvq.jobs import run_job
from vidvq.storage import resolve_path
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.stage import TokenizeClips, TokenizeVideos, open_stage

__all__ = ["TokenizeClips", "TokenizeConfig", "TokenizeVideos", "open_stage", "run_tokenize"]


def run_tokenize(
    sources: Sequence[str | Path], checkpoint: str | Path, out: str | Path, config: TokenizeConfig
) -> JobSummary:
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
    config = checked(TokenizeConfig, config)
    inputs = as_list("sources", sources, "paths and URLs")
    return run_job(open_stage(inputs, resolve_checkpoint(checkpoint), config), inputs, resolve_path(out))
