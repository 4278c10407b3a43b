"""`vidvq export`."""

from pathlib import Path

import click

from vidvq import config, log
from vidvq.cli.config import settings_epilog
from vidvq.cli.options import PathOrUrl


@click.command(short_help="Export token shards to the formats of trainers.", epilog=settings_epilog("export"))
@click.argument("tokens", type=PathOrUrl())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--to", "target", required=True, help="megatron, litdata, parquet, mds, energon or bin.")
@click.option("--out", required=True, type=PathOrUrl(), help="Output directory, or s3://bucket/folder.")
@click.option("--check", is_flag=True, help="Read the export back and compare it with TOKENS, id by id.")
def export(tokens: Path, overrides: tuple[str, ...], target: str, out: Path, check: bool) -> int:
    """Export TOKENS (a directory that `vidvq tokenize` wrote) as flat sequences of ids, one per clip.

    An interrupted export resumes with the same command, to identical bytes.

    vidvq export runs/tokens --to megatron --out runs/megatron order=temporal
    """
    from vidvq.export import ExportConfig, run_export

    settings = config.load(ExportConfig, None, list(overrides))
    for line in run_export(tokens, target, out, settings, check).lines():
        log.info(line + (f"; equal to {tokens}, id by id" if check else ""))
    return 0
