"""`vidvq inspect`."""

import click

from vidvq.formats.checkpoint import resolve_checkpoint
from vidvq.redact import printable


@click.command(short_help="Describe a video, shard, plan, checkpoint or token shard.")
@click.argument("path")
def inspect(path: str) -> int:
    """Describe PATH: a video, a clip or token shard, a directory of shards, a plan, a commit or a checkpoint.

    `bundled` is the tokenizer that ships with vidvq.
    """
    from vidvq.inspect import describe

    for line in describe(resolve_checkpoint(path)):
        click.echo(printable(line))
    return 0
