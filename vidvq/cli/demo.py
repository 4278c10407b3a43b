"""`vidvq demo`."""

from pathlib import Path

import click

from vidvq.cli.options import PathOrUrl


@click.command(short_help="Watch the whole path run on real video.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=PathOrUrl(), help="Output directory; runs/demo, with --quick runs/demo-quick.")
@click.option("--quick", is_flag=True, help="Small clips and 20 training steps: checks the installation in a minute.")
def demo(overrides: tuple[str, ...], out: Path | None, quick: bool) -> int:
    """Shard the videos that ship with vidvq, train on them, tokenize, decode, and write OUT/report.html.

    About 5 minutes on 2 CPU cores. KEY=VALUE are settings of the training.
    """
    from vidvq.demo import run_demo

    return run_demo(out or Path("runs/demo-quick" if quick else "runs/demo"), list(overrides), quick)
