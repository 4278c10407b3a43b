"""`vidvq map`."""

from typing import Any

import click

from vidvq.cli.corpus import corpus_command
from vidvq.cli.options import optional_out


def _load_map() -> Any:
    from vidvq.map import MapStage

    return MapStage


map_clips = corpus_command(
    "map",
    _load_map,
    inputs="CLIPS",
    short_help="Run a function over clips; write its results as columns.",
    help="""Run a function over the clips in CLIPS, a directory of clip shards, and write what it returns as columns.

    FUNCTION takes the frames of a clip (`t h w c` uint8) and its JSON (vidvq.formats.clip_shard.ClipInfo), and returns
    a dict of text, numbers, bools and None. A class or factory is called once in each worker, to load a model, and
    gives such a function. It is imported and run as your own code, in a process of its own: what it prints is not
    shown, and a clip that it raises on, crashes on or hangs on is counted as failed. `where` then selects by the
    columns. A function that was changed is another job and needs another --out.

    \b
    vidvq map shards/ --function motion.py:motion
    vidvq map shards/ --function captioner:Captioner gpus=0.5 arguments.model=small version=2
    """,
    options=(
        click.option(
            "--function", required=True, metavar="FUNCTION", help="module:callable, or path/file.py:callable."
        ),
    ),
    out=optional_out("CLIPS/columns/NAME of the function"),
)
