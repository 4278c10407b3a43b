"""`vidvq verify`."""

from pathlib import Path

import click

from vidvq import log
from vidvq.cli.options import PathOrUrl


@click.command(short_help="Verify a directory of shards or an export.")
@click.argument("folder", metavar="DIR", type=PathOrUrl())
def verify(folder: Path) -> int:
    """Verify DIR, a directory that `vidvq shard`, `map`, `tokenize` or `export` wrote, or a checkpoint.

    Checks that every planned item is accounted for exactly once, every field agrees with the bytes, every checksum
    matches and every code is in range.
    """
    from vidvq.export import is_export, verify_export
    from vidvq.formats.checkpoint import is_checkpoint, is_generator, verify_checkpoint
    from vidvq.formats.generator import verify_generator
    from vidvq.formats.verify import verify_folder

    if is_checkpoint(folder):
        kind = "generator" if is_generator(folder) else "checkpoint"
        problems, notes = (verify_generator(folder), []) if kind == "generator" else verify_checkpoint(folder)
        for note in notes:
            log.info(f"{folder}: {note}")
        for problem in problems:
            click.echo(problem)
        if problems:
            click.echo(f"{folder}: {len(problems)} problems in a {kind}", err=True)
            return 1
        click.echo(f"{folder} is intact: a {kind}")
        return 0
    if is_export(folder):
        problems, parts = verify_export(folder)
        for problem in problems:
            click.echo(problem)
        if problems:
            click.echo(f"{folder}: {len(problems)} problems in {parts} parts", err=True)
            return 1
        click.echo(f"{folder} is intact: an export of {parts} parts")
        return 0
    with log.progress("verify", _count_shards(folder), "shards") as bar:
        report = verify_folder(folder, bar.advance)
    for note in report.notes:
        log.info(f"{folder}: {note}")
    for problem in report.problems:
        click.echo(problem)
    if report.problems:
        click.echo(f"{folder}: {len(report.problems)} problems in {report.shards} shards", err=True)
        return 1
    click.echo(
        f"{folder} is intact: {report.items} items planned, {report.ok} ok, {report.failed} failed, "
        f"{report.filtered} filtered, {report.shards} shards, {report.bytes / 1e6:.1f} MB"
    )
    return 0


def _count_shards(folder: Path) -> int:
    from vidvq.formats.plan import read_plan

    return read_plan(folder).num_shards
