"""`vidvq decode`."""

import re
from fractions import Fraction
from pathlib import Path

import click

from vidvq import config, log
from vidvq.cli.config import settings_epilog
from vidvq.cli.options import PathOrUrl, checkpoint_option, with_option
from vidvq.errors import UsageError

_GRID = re.compile(r"([1-9]\d{0,8})[,x]([1-9]\d{0,8})[,x]([1-9]\d{0,8})")
# Bounded: the exact fraction of 1e99999999 would have as many digits.
_SECONDS = re.compile(r"[+-]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})(e[+-]?\d{1,2})?|[+-]?\d{1,18}/\d{1,18}", re.I | re.A)


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> Fraction | None:
    if value is None:
        return None
    try:
        if not _SECONDS.fullmatch(value):
            raise ValueError
        return Fraction(value)
    except (ValueError, ZeroDivisionError) as error:
        raise click.BadParameter(f"{value!r} is not a number of seconds, such as 12.5") from error


def _grid(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int, int] | None:
    if value is None:
        return None
    match = _GRID.fullmatch(value)
    if not match:
        raise click.BadParameter(f"{value!r} must be LT,LH,LW, such as 9,16,16")
    return int(match[1]), int(match[2]), int(match[3])


@click.command(short_help="Turn token shards back into video.", epilog=settings_epilog("decode"))
@click.argument("tokens", type=PathOrUrl())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@checkpoint_option
@click.option(
    "--out", required=True, type=PathOrUrl(), help="Output folder, or a file for a single clip or an interval."
)
@click.option("--force", is_flag=True, help="Overwrite outputs that exist.")
@click.option("--key", help="Key of the one clip to decode.")
@click.option("--source", metavar="URI", help="Path or URI of a video to decode into one file.")
@click.option(
    "--from", "start", callback=_seconds, metavar="SECONDS", help="Start of the interval on the timeline of the video."
)
@click.option("--to", "end", callback=_seconds, metavar="SECONDS", help="End of the interval, exclusive.")
@click.option("--tokenizer", type=PathOrUrl(), help="tokenizer.json for a generator's codes (.npy or .bin).")
@click.option("--flat", is_flag=True, help="The generator's ids index the flat vocabulary.")
@click.option("--grid", callback=_grid, metavar="LT,LH,LW", help="Grid of one video, for ids without a shape.")
def decode(
    tokens: Path,
    overrides: tuple[str, ...],
    checkpoint: Path,
    out: Path,
    force: bool,
    key: str | None,
    source: str | None,
    start: Fraction | None,
    end: Fraction | None,
    tokenizer: Path | None,
    flat: bool,
    grid: tuple[int, int, int] | None,
) -> int:
    """Turn TOKENS (a directory that `vidvq tokenize` wrote, or one shard in it) back into video.

    Writes OUT/KEY.mp4 (or .gif, .npy, KEY/000000.png by format=) with the frame count and frame times of the
    source. Existing outputs of the same tokens are skipped, other files are not overwritten. TOKENS may also be a
    generator's codes, an .npy or .bin file.

    \b
    vidvq decode runs/tokens --checkpoint runs/train --out runs/decoded format=png
    vidvq decode runs/tokens --checkpoint runs/train --source film.mp4 --from 12.5 --to 20 --out scene.mp4
    vidvq decode made.npy --tokenizer runs/tokens --checkpoint runs/train --out made.mp4 fps=25
    """
    from vidvq import decode as stage

    settings = config.load(stage.DecodeConfig, None, with_option(overrides, "key", key))
    if tokens.suffix in {".npz", ".safetensors", ".pt"}:
        raise UsageError(f"{tokens.name} is not read; save its array of codes as .npy, with numpy.save")
    if tokens.suffix in {".npy", ".bin"}:
        if tokenizer is None or settings.fps is None:
            raise UsageError(f"{tokens.name} is a file of codes; give --tokenizer (the one it was trained on) and fps=")
        if source is not None or settings.key is not None or start is not None or end is not None:
            raise UsageError("--key, --source, --from and --to are for token shards, not for a file of codes")
        if not tokens.is_file():
            raise UsageError(f"{tokens} does not exist; give a .npy or .bin file of codes")
        codes = stage.GeneratedFile(tokens, settings.fps, flat, grid)
        count = stage.run_decode_generated(codes, tokenizer, checkpoint, out, settings, force)
    else:
        if tokenizer or flat or grid or settings.fps:
            raise UsageError("--tokenizer, --flat, --grid and fps= are for a generator's .npy or .bin, not for shards")
        if source is None and (start is not None or end is not None):
            raise UsageError("--from and --to need --source, the video on whose timeline they are")
        interval = None if source is None else stage.VideoInterval(source, start, end)
        count = stage.run_decode(tokens, checkpoint, out, settings, interval, force)
    log.info(f"{log.counted(count, 'clips')} decoded into {out}")
    return 0
