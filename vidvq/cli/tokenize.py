"""`vidvq tokenize`."""

from functools import partial
from pkgutil import resolve_name

from vidvq.cli.corpus import corpus_command
from vidvq.cli.options import checkpoint_option

tokenize = corpus_command(
    "tokenize",
    partial(resolve_name, "vidvq.tokenize:TokenizeVideos"),
    inputs="SOURCES",
    short_help="Turn clip shards or videos into token shards.",
    help="""Turn SOURCES into token shards: a directory of clip shards, or videos in any form that `vidvq shard` takes.

    Raw video is split into independent samples of gop_frames frames; gop_frames=null makes one sample of each video.
    An interrupted job resumes with the same command, to identical bytes.

    \b
    vidvq tokenize runs/clips --checkpoint runs/train --out runs/tokens
    vidvq tokenize films/ more.csv --checkpoint runs/train --out runs/films gop_frames=65 video.short_side=256
    vidvq tokenize new/ --checkpoint runs/train --out runs/films --add
    vidvq tokenize --checkpoint runs/train --out runs/films --retry-failed=fetch_failed
    """,
    options=(checkpoint_option,),
)
