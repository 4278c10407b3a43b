"""The commands that do work. A stage is imported when its command runs, so that `vidvq --help` answers at once."""

import os
from pathlib import Path
from typing import Any

import click

from vidvq import config, log
from vidvq.cli.config import settings_epilog
from vidvq.cli.corpus import corpus_command
from vidvq.cli.decode import decode
from vidvq.cli.place import Place, checkpoint_option
from vidvq.cli.view import view


def _load_shard() -> Any:
    from vidvq.shard import ShardStage

    return ShardStage


def _load_tokenize() -> Any:
    from vidvq.tokenize import TokenizeVideos

    return TokenizeVideos


shard = corpus_command(
    "shard",
    _load_shard,
    inputs="VIDEOS",
    short_help="Cut videos into clip shards.",
    help="""Cut VIDEOS into WebDataset shards of clips.

    VIDEOS are files, folders, globs, lists (txt, csv, jsonl, parquet), tars of videos, and URLs (s3://, https://).
    An interrupted job resumes with the same command; the result is the same, byte for byte.

    \b
    vidvq shard videos/ --out shards/ clip.num_frames=33 clip.short_side=128 runtime.workers=8
    vidvq shard more/ --out shards/ --add
    vidvq shard --out shards/ --retry-failed=fetch_failed
    """,
)

tokenize = corpus_command(
    "tokenize",
    _load_tokenize,
    inputs="SOURCES",
    short_help="Turn clip shards or videos into token shards.",
    help="""Turn SOURCES into token shards: a directory of clip shards, or videos as `vidvq shard` takes them.

    A sample of raw video is a fresh start of the stream, gop_frames long; gop_frames=null makes one unbroken stream of
    each video. An interrupted job resumes with the same command; the result is the same, byte for byte.

    \b
    vidvq tokenize shards/ --checkpoint runs/demo --out tokens/
    vidvq tokenize videos/ more.csv --checkpoint runs/demo --out tokens/ gop_frames=65 video.short_side=256
    vidvq tokenize new/ --checkpoint runs/demo --out tokens/ --add
    vidvq tokenize --checkpoint runs/demo --out tokens/ --retry-failed=fetch_failed
    """,
    options=(checkpoint_option,),
)


@click.command(short_help="Train a tokenizer on clip shards.", epilog=settings_epilog("train"))
@click.argument("config_name", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--profile", is_flag=True, help="Record steps 8 to 10: a table by parts and operators, and a trace.")
def train(config_name: str, overrides: tuple[str, ...], profile: bool) -> int:
    """Train a tokenizer as CONFIG (a YAML file, or the name of a packaged one) says.

    On several devices or nodes start it with torchrun: torchrun --nproc-per-node 8 -m vidvq train CONFIG.

    vidvq train demo data.clips=shards/train out=runs/demo
    """
    # Read when torch loads. By default its threads spin at every barrier, and where another process wants a core
    # too, a step then takes many times as long; this little costs a fifth on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from vidvq.train import TrainConfig, run_train

    settings = config.load(TrainConfig, config.find_config(config_name), list(overrides))
    run_train(settings, profile)
    return 0


@click.command(short_help="Score decoded clips against their originals.")
@click.argument("clips", type=Place())
@click.argument("decoded", type=Place())
@click.option("--tokens", required=True, type=Place(), help="The tokens DECODED was made from.")
@click.option("--out", type=Place(), help="Write the scores to this JSON file.")
def evaluate(clips: Path, decoded: Path, tokens: Path, out: Path | None) -> int:
    """Score what `vidvq decode ... format=png` wrote into DECODED against the originals in CLIPS.

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


@click.command(short_help="Watch the whole path run on real video.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=Place(), help="Output directory; runs/demo, with --quick runs/demo-quick.")
@click.option("--quick", is_flag=True, help="Small clips and 20 training steps: checks the installation in a minute.")
def demo(overrides: tuple[str, ...], out: Path | None, quick: bool) -> int:
    """Shard the videos that ship with vidvq, train on them, tokenize, decode, and write OUT/report.html.

    About 5 minutes on 2 CPU cores. KEY=VALUE are settings of the training.
    """
    from vidvq.demo import run_demo

    return run_demo(out or Path("runs/demo-quick" if quick else "runs/demo"), list(overrides), quick)


COMMANDS = (shard, train, tokenize, decode, view, evaluate, demo)
