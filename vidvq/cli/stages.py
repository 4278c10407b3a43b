"""The verbs that do work. A stage is imported when its verb runs, so that `vidvq --help` answers at once."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vidvq import config, log
from vidvq.cli.arguments import change_options, read_change, refuse_settings
from vidvq.cli.decode import decode
from vidvq.cli.place import Place, checkpoint_option
from vidvq.cli.view import view
from vidvq.errors import UsageError

# What a change to a corpus may set: nothing that is of the plan.
_FREE = ("runtime.", "max_failed=")
_THRESHOLDS = ("quality.min_psnr=", "quality.max_drop=", "quality.min_usage=")


def _config_path(name: str | None) -> Path | None:
    return config.find_config(name) if name else None


_out = click.option("--out", required=True, type=Place(), help="Output directory, or s3://bucket/folder.")
_config = click.option("--config", "config_name", help="YAML file, or the name of a packaged one.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


def _show(result: Any, as_json: bool) -> int:
    for line in result.lines():
        log.info(line)
    if as_json:
        click.echo(json.dumps(asdict(result)))
    return 0


def _report(summary: Any, max_failed: float, as_json: bool) -> int:
    _show(summary, as_json)
    if summary.failed_share > max_failed:
        log.warn(f"{summary.failed_share:.1%} of the items failed; the threshold is max_failed={max_failed:g}")
        return 1
    return 0


@click.command(short_help="Cut videos into clip shards.")
@click.argument("videos", nargs=-1, metavar="[VIDEOS]... [KEY=VALUE]...")
@_out
@_config
@_json
@click.option("--dry-run", is_flag=True, help="Say what would be made and how long it would take; write nothing.")
@change_options("VIDEOS")
def shard(
    videos: tuple[str, ...],
    out: Path,
    config_name: str | None,
    as_json: bool,
    dry_run: bool,
    add: bool,
    remove: tuple[str, ...],
    retry_failed: str | None,
) -> int:
    """Cut VIDEOS into WebDataset shards of clips.

    VIDEOS are files, folders, globs, lists (txt, csv, jsonl, parquet), tars of videos, and URLs (s3://, https://).
    An interrupted job goes on where it stopped; the result is the same, byte for byte.

    \b
    vidvq shard videos/ --out shards/ clip.num_frames=33 clip.short_side=128 runtime.workers=8
    vidvq shard more/ --out shards/ --add
    vidvq shard --out shards/ --retry-failed=fetch_failed
    """
    from vidvq import shard as stage

    inputs, overrides, change = read_change(videos, add, remove, retry_failed, dry_run)
    if change:
        refuse_settings(out, config_name, overrides, _FREE)
        settings = stage.standing_config(out, overrides)
        summary = stage.amend(change, out, settings)
    else:
        settings = config.load(stage.ShardConfig, _config_path(config_name), overrides)
        if dry_run:
            return _show(stage.estimate(inputs, settings), as_json)
        summary = stage.run_shard(inputs, out, settings)
    return _report(summary, settings.max_failed, as_json)


@click.command(short_help="Train a tokenizer on clip shards.")
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


@click.command(short_help="Turn clip shards or videos into token shards.")
@click.argument("sources", nargs=-1, metavar="[SOURCES]... [KEY=VALUE]...")
@checkpoint_option
@_out
@_config
@_json
@click.option("--dry-run", is_flag=True, help="Say what would be made and how long it would take; write nothing.")
@change_options("SOURCES, videos,")
def tokenize(
    sources: tuple[str, ...],
    checkpoint: Path,
    out: Path,
    config_name: str | None,
    as_json: bool,
    dry_run: bool,
    add: bool,
    remove: tuple[str, ...],
    retry_failed: str | None,
) -> int:
    """Turn SOURCES into token shards: a directory of clip shards, one for one; or videos, as `vidvq shard` takes them.

    Of raw video each sample is a fresh start of the stream, gop_frames long; gop_frames=null makes one unbroken stream
    of each video. An interrupted job goes on where it stopped; the result is the same, byte for byte.

    \b
    vidvq tokenize shards/ --checkpoint runs/demo --out tokens/
    vidvq tokenize videos/ more.csv --checkpoint runs/demo --out tokens/ gop_frames=65 video.short_side=256
    vidvq tokenize new/ --checkpoint runs/demo --out tokens/ --add
    vidvq tokenize --checkpoint runs/demo --out tokens/ --retry-failed=fetch_failed
    """
    from vidvq import tokenize as stage

    inputs, overrides, change = read_change(sources, add, remove, retry_failed, dry_run)
    if change:
        refuse_settings(out, config_name, overrides, (*_FREE, *_THRESHOLDS))
        settings = stage.standing_config(out, overrides)
        summary = stage.amend(change, checkpoint, out, settings)
    else:
        if not inputs:
            raise UsageError("there is no source; give a directory of clip shards, or videos")
        settings = config.load(stage.TokenizeConfig, _config_path(config_name), overrides)
        if dry_run:
            return _show(stage.estimate(inputs, checkpoint, settings), as_json)
        summary = stage.run_tokenize(inputs, checkpoint, out, settings)
    return _report(summary, settings.max_failed, as_json)


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
@click.option("--out", default="runs/demo", type=Place(), show_default=True, help="Output directory.")
def demo(overrides: tuple[str, ...], out: Path) -> int:
    """Shard the videos that ship with vidvq, train on them, tokenize, decode, and write OUT/report.html.

    About 5 minutes on 2 CPU cores. KEY=VALUE goes to the training (steps=20 for a quick look).
    """
    from vidvq.demo import run_demo

    return run_demo(out, list(overrides))


COMMANDS = (shard, train, tokenize, decode, view, evaluate, demo)
