"""`vidvq map`."""

from functools import partial
from pkgutil import resolve_name

import click

from vidvq.cli.corpus import corpus_command
from vidvq.cli.options import optional_out

map_clips = corpus_command(
    "map",
    partial(resolve_name, "vidvq.map:MapStage"),
    inputs="CLIPS",
    short_help="Run a function over clips; write its results as columns.",
    help="""Run a function over the clips in CLIPS, a directory of clip shards, and write its results as columns.

    FUNCTION takes the frames of a clip (`t h w c` uint8) and its JSON (vidvq.formats.clip_shard.ClipInfo), and returns
    a dict of text, numbers, bools and None. A class or factory is called once per worker, for example to
    load a model, and returns such a function. The function runs in a separate process; its standard output is
    discarded, and a clip on which it raises, crashes or hangs is counted as failed. `where` selects by the columns.
    A changed function is another job and needs another --out.

    \b
    vidvq map runs/clips --function motion.py:motion
    vidvq map runs/clips --function captioner:Captioner gpus=0.5 arguments.model=small version=2
    """,
    options=(
        click.option(
            "--function", required=True, metavar="FUNCTION", help="module:callable, or path/file.py:callable."
        ),
    ),
    out=optional_out("CLIPS/columns/NAME of the function"),
    takes_videos=False,
)
