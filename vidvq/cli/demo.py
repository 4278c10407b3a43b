"""`vidvq demo`."""

from pathlib import Path

import click

from vidvq.cli.options import PathOrUrl


@click.command(short_help="Run the whole pipeline on bundled videos.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=PathOrUrl(), help="Output directory. Default: runs/demo, or runs/demo-quick with --quick.")
@click.option("--quick", is_flag=True, help="Small clips and 20 training steps, to check the installation in a minute.")
def demo(overrides: tuple[str, ...], out: Path | None, quick: bool) -> int:
    """Shard the bundled videos, train on them, tokenize, decode, and write OUT/report.html.

    Takes 5 to 10 minutes on 2 CPU cores. KEY=VALUE are settings of the training.
    """
    from vidvq.demo import run_demo

    return run_demo(out or Path("runs/demo-quick" if quick else "runs/demo"), list(overrides), quick)
