"""`vidvq evaluate`."""

from pathlib import Path

import click

from vidvq import config, log
from vidvq.cli.config import settings_epilog
from vidvq.cli.options import OutputFile, PathOrUrl, TokenizerPath, split
from vidvq.errors import UsageError
from vidvq.storage import resolve_path


@click.command(short_help="Score decoded clips, or tokenizers, against originals.", epilog=settings_epilog("evaluate"))
@click.argument("clips", type=PathOrUrl())
@click.argument("arguments", nargs=-1, metavar="[DECODED] [KEY=VALUE]...")
@click.option("--tokens", type=PathOrUrl(), help="Tokens that DECODED was made from.")
@click.option(
    "--checkpoint",
    "checkpoints",
    type=TokenizerPath(),
    multiple=True,
    help="Tokenizer to encode and decode CLIPS with, or `bundled` for the bundled one; may be repeated.",
)
@click.option("--out", type=OutputFile(rb'{\s*"(clips|evaluations)": \['), help="Write the scores to this JSON file.")
@click.option(
    "--report",
    type=OutputFile(rb"<!doctype html>.*<title>vidvq evaluate:"),
    help="Write a page of the worst clips to this HTML file.",
)
def evaluate(
    clips: Path,
    arguments: tuple[str, ...],
    tokens: Path | None,
    checkpoints: tuple[Path, ...],
    out: Path | None,
    report: Path | None,
) -> int:
    """Score reconstructions of CLIPS, a directory of clip shards, against the originals.

    With DECODED, the output of `vidvq decode ... format=png`, its frames are scored. With --checkpoint, CLIPS are
    encoded and decoded here; several tokenizers are scored side by side.

    \b
    vidvq evaluate runs/clips runs/decoded --tokens runs/tokens --out scores.json
    vidvq evaluate runs/clips --checkpoint runs/a --checkpoint runs/b "codecs=[x264,svtav1]" --report worst.html
    """
    from vidvq.evaluate import EvaluateConfig, run_evaluate, run_evaluate_tokenizers
    from vidvq.evaluate.scores import lines

    given, overrides = split(arguments)
    settings = config.load(EvaluateConfig, None, overrides)
    if out and out == report:
        raise UsageError(f"--out {out} and --report {report} are one file; give each its own")
    if len(given) > 1:
        raise UsageError(f"one DECODED is scored, but {len(given)} are given: {', '.join(given)}")
    if bool(given) == bool(checkpoints):
        raise UsageError("give either DECODED with --tokens, or --checkpoint")
    if bool(given) != bool(tokens):
        raise UsageError("DECODED and --tokens belong together; give both, or --checkpoint alone")
    if tokens:
        evaluations = [run_evaluate(clips, resolve_path(given[0]), tokens, out, settings, report)]
    else:
        evaluations = run_evaluate_tokenizers(clips, checkpoints, out, settings, report)
    for line in lines(evaluations):
        log.info(line)
    if report:
        log.info(f"the worst clips are in {report}")
    return 0
