"""`vidvq evaluate`."""

from pathlib import Path

import click

from vidvq import log
from vidvq.cli.options import PathOrUrl


@click.command(short_help="Score decoded clips against their originals.")
@click.argument("clips", type=PathOrUrl())
@click.argument("decoded", type=PathOrUrl())
@click.option("--tokens", required=True, type=PathOrUrl(), help="Tokens that DECODED was made from.")
@click.option("--out", type=PathOrUrl(), help="Write the scores to this JSON file.")
def evaluate(clips: Path, decoded: Path, tokens: Path, out: Path | None) -> int:
    """Score DECODED, the output of `vidvq decode ... format=png`, against the originals in CLIPS.

    vidvq evaluate shards/ decoded/ --tokens tokens/ --out scores.json
    """
    from vidvq.evaluate import run_evaluate

    scores = run_evaluate(clips, decoded, tokens, out)
    log.info(
        f"{len(scores.clips)} clips: PSNR {scores.mean('psnr'):.2f} dB, SSIM {scores.mean('ssim'):.3f}; "
        f"their mean frames: {scores.mean('mean_frame_psnr'):.2f} dB, {scores.mean('mean_frame_ssim'):.3f}"
    )
    for book in scores.codebooks:
        log.info(book.line())
    return 0
