"""`vidvq verify`."""

from collections.abc import Sequence
from pathlib import Path

import click

from vidvq import log
from vidvq.cli.options import PathOrUrl
from vidvq.errors import UsageError
from vidvq.redact import printable

_REMEDY = "give a directory that vidvq shard, map, tokenize, generate or export wrote, or a checkpoint"


@click.command(short_help="Verify a directory of shards or an export.")
@click.argument("folder", metavar="DIR", type=PathOrUrl())
def verify(folder: Path) -> int:
    """Verify DIR, a directory that `vidvq shard`, `map`, `tokenize`, `generate` or `export` wrote, or a checkpoint.

    For a training run, its newest checkpoint is verified.

    Checks that every planned item is accounted for exactly once, every field agrees with the bytes, every checksum
    matches and every code is in range.
    """
    from vidvq.export import is_export, verify_export
    from vidvq.formats.checkpoint import find_checkpoint, is_checkpoint, is_generator, list_steps, verify_checkpoint
    from vidvq.formats.decoded import DECODE_SETTINGS
    from vidvq.formats.generator import verify_generator
    from vidvq.formats.plan import has_plan, read_plan
    from vidvq.formats.verify import verify_folder

    # Shards before checkpoints: earlier versions trained into any directory.
    if not has_plan(folder) and list_steps(folder):
        folder = find_checkpoint(folder)
    if is_checkpoint(folder):
        kind = "generator" if is_generator(folder) else "checkpoint"
        problems, notes = (verify_generator(folder), []) if kind == "generator" else verify_checkpoint(folder)
        return _report(folder, problems, notes, f"a {kind}")
    if is_export(folder):
        problems, parts = verify_export(folder)
        return _report(folder, problems, [], f"an export of {log.counted(parts, 'parts')}")
    if not has_plan(folder) and (folder / DECODE_SETTINGS).is_file():
        raise UsageError(
            f"{folder} holds decoded clips, which have no checksums; verify the tokens that it was made from"
        )
    with log.progress("verify", read_plan(folder, _REMEDY).num_shards, "shards") as bar:
        report = verify_folder(folder, bar.advance)
    shards = log.counted(report.shards, "shards")
    account = (
        f"{log.counted(report.items, 'items')} planned, {report.ok} ok, {report.failed} failed, "
        f"{report.filtered} filtered, {shards}, {log.in_bytes(report.bytes)}"
    )
    return _report(folder, report.problems, report.notes, shards, account)


def _report(folder: Path, problems: Sequence[str], notes: Sequence[str], content: str, account: str = "") -> int:
    """Print the problems, or else the account (by default the content); returns the exit code."""
    for note in notes:
        log.info(f"{folder}: {note}")
    for problem in problems:
        click.echo(printable(problem))
    if problems:
        click.echo(f"{folder}: {log.counted(len(problems), 'problems')} in {content}", err=True)
        return 1
    click.echo(f"{folder} is intact: {account or content}")
    return 0
