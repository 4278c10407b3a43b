"""`vidvq view`."""

from pathlib import Path

import click

from vidvq import log
from vidvq.cli.options import OutputFile, PathOrUrl, checkpoint_option


@click.command(short_help="Browse tokens and decoded clips.")
@click.argument("tokens", type=PathOrUrl())
@checkpoint_option
@click.option("--clips", type=PathOrUrl(), help="Clip shards that the tokens were made from, to show the originals.")
@click.option(
    "--codes", type=PathOrUrl(), help="File of vidvq generate evaluate --codes, to show how predictable codes are."
)
@click.option(
    "--out",
    type=OutputFile(rb"<!doctype html>.*<title>vidvq view:"),
    help="Write a page of the first clips to this file instead of serving all.",
)
@click.option(
    "--first", default=12, show_default=True, type=click.IntRange(1, 200), help="Number of clips in the page of --out."
)
@click.option(
    "--port",
    default=8765,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port on 127.0.0.1, or 0.",
)
def view(
    tokens: Path, checkpoint: Path, clips: Path | None, codes: Path | None, out: Path | None, first: int, port: int
) -> int:
    """Show the clips in TOKENS: decoded frames, their codes, and the patch that each code decodes to.

    vidvq view runs/tokens --clips runs/clips --checkpoint runs/train
    """
    from vidvq.view import Gallery, build_page, build_routes, serve

    gallery = Gallery(tokens, checkpoint, clips, codes)
    if out is None:
        serve(build_page(gallery, None), build_routes(gallery), port)
        return 0
    from vidvq.storage import write_atomic

    page = build_page(gallery, first)
    write_atomic(out, page)
    log.info(f"{log.in_bytes(len(page))} written to {out}")
    return 0
