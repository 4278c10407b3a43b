"""`vidvq shard`."""

from functools import partial
from pkgutil import resolve_name

from vidvq.cli.corpus import corpus_command

shard = corpus_command(
    "shard",
    partial(resolve_name, "vidvq.shard:ShardStage"),
    inputs="VIDEOS",
    short_help="Cut videos into clip shards.",
    help="""Cut VIDEOS into WebDataset shards of clips.

    VIDEOS are files, folders, globs, lists (txt, csv, jsonl, parquet), tars of videos, and URLs (s3://, https://).
    An interrupted job resumes with the same command, to identical bytes.

    \b
    vidvq shard videos/ --out runs/clips clip.num_frames=33 clip.short_side=128 runtime.workers=8
    vidvq shard new/ --out runs/clips --add
    vidvq shard --out runs/clips --retry-failed=fetch_failed
    """,
)
