"""`vidvq inspect`."""

from pathlib import Path

import click

from vidvq.cli.options import PathOrUrl
from vidvq.redact import printable


@click.command(short_help="Describe a video, shard, plan, checkpoint or token shard.")
@click.argument("path", type=PathOrUrl())
def inspect(path: Path) -> int:
    """Describe PATH: a video, a clip or token shard, a directory of shards, a plan, a commit or a checkpoint."""
    from vidvq.inspect import describe

    for line in describe(path):
        click.echo(printable(line))
    return 0
