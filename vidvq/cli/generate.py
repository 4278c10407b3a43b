"""`vidvq generate`."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidvq import config, log
from vidvq.cli.config import settings_epilog
from vidvq.cli.corpus import exit_code
from vidvq.cli.options import (
    OutputFile,
    PathOrUrl,
    checkpoint_option,
    config_option,
    config_path,
    json_option,
    out_option,
    retry_option,
    run_out_option,
    split,
    take_reason,
    with_option,
)
from vidvq.errors import UsageError
from vidvq.settings import flow_yaml

if TYPE_CHECKING:
    from vidvq.generate.config import GenerateTrainConfig

_DEFAULT_CONFIG = "generate-nano"


@click.group(short_help="Train a generator on token shards, and generate with it.")
def generate() -> None:
    """Train a generator on token shards, and generate token shards and video with it.

    \b
    vidvq generate train runs/tokens --out runs/generator
    vidvq generate sample runs/generator --out runs/samples n=16
    vidvq generate predict runs/generator runs/tokens --out runs/predicted given=5
    vidvq generate interpolate runs/generator runs/clips --out runs/between
    vidvq generate fill runs/generator runs/clips --out runs/filled "box=[16,16,32,32]"
    vidvq generate guide runs/tokens --text "a snowy street" --clip models/clip --out runs/snow
    vidvq generate evaluate runs/generator runs/heldout-tokens --clips runs/heldout-clips
    """


def training_arguments(function: Callable[..., int]) -> Callable[..., int]:
    """Add the arguments of `vidvq generate train`, which :func:`load_training_config` takes."""
    options = (
        click.argument("arguments", nargs=-1, metavar="TOKENS... [KEY=VALUE]..."),
        run_out_option,
        click.option(
            "--config", "config_name", default=_DEFAULT_CONFIG, show_default=True, help="YAML file, or packaged one."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def load_training_config(arguments: tuple[str, ...], out: str | None, config_name: str) -> "GenerateTrainConfig":
    """Load the settings of `vidvq generate train` from its arguments."""
    from vidvq.generate.config import GenerateTrainConfig

    tokens, overrides = split(arguments)
    if tokens and (same := next((each for each in overrides if each.startswith("data.tokens=")), None)):
        raise UsageError(f"TOKENS and {same} are one setting; give one of them")
    given = [f"data.tokens={flow_yaml(tokens)}"] if tokens else []
    settings = with_option([*given, *overrides], "out", out)
    path = config.find_config(config_name)
    if config_name == _DEFAULT_CONFIG:
        # As the base, because errors name the file, which is not the user's.
        return config.load(GenerateTrainConfig, None, settings, config.read_yaml(path))
    return config.load(GenerateTrainConfig, path, settings)


@generate.command(short_help="Train a generator on token shards.", epilog=settings_epilog("generate-train"))
@training_arguments
def train(arguments: tuple[str, ...], out: str | None, config_name: str) -> int:
    """Train a generator on TOKENS, directories of token shards of one tokenizer.

    An interrupted run resumes with the same command. For several GPUs, start it with torchrun; for several nodes, with
    torchrun or `vidvq submit generate train`.

    \b
    vidvq generate train runs/tokens --out runs/generator
    torchrun --nproc-per-node 8 -m vidvq generate train runs/tokens --out runs/generator
    vidvq generate train runs/tokens --out runs/generator tasks.interpolate=1 "pixels.clips=[runs/clips]"
    vidvq generate train runs/tokens --out runs/generator --config generate-small objective=next
    """
    # See vidvq.cli.train.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from vidvq.generate.training.loop import run_generate_train

    run_generate_train(load_training_config(arguments, out, config_name))
    return 0


@generate.command(short_help="Score a generator on held-out clips.", epilog=settings_epilog("generate-evaluate"))
@click.argument("run", type=PathOrUrl())
@click.argument("tokens", type=PathOrUrl())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--clips", type=PathOrUrl(), help="The clip shards that TOKENS was made from; without them, no PSNR.")
@checkpoint_option
@click.option("--out", type=OutputFile(rb'{\s*"bits": {'), help="Write the scores to this JSON file.")
@click.option("--pictures", type=PathOrUrl(), help="Write the frames of the first clip into this folder, as npy.")
@click.option(
    "--codes",
    type=OutputFile(rb'{\s*"bits_by_place": \['),
    help="Write the bits and the nearest codes of each code to this JSON file, for vidvq view.",
)
def evaluate(
    run: Path,
    tokens: Path,
    overrides: tuple[str, ...],
    clips: Path | None,
    checkpoint: Path,
    out: Path | None,
    pictures: Path | None,
    codes: Path | None,
) -> int:
    """Score RUN on TOKENS (held-out token shards), next to trivial baselines.

    Bits per token, next to unigram and bigrams of the training tokens. PSNR of predictions, interpolations and fills,
    next to the repeated last frame, the linear blend and the surrounding mean, with the tokenizer's reconstruction as
    the ceiling. The fraction of samples that copy a training sample.

    \b
    vidvq generate evaluate runs/generator runs/heldout-tokens --clips runs/heldout-clips --out scores.json
    """
    from vidvq.generate.evaluation.evaluate import run_generate_evaluate
    from vidvq.generate.requests import EvaluateConfig

    settings = config.load(EvaluateConfig, None, list(overrides))
    for line in run_generate_evaluate(run, tokens, settings, clips, checkpoint, out, pictures, codes).lines():
        log.info(line)
    return 0


@generate.command(short_help="Steer a generator in a browser page.", epilog=settings_epilog("generate-play"))
@click.argument("run", type=PathOrUrl())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--tokens", type=PathOrUrl(), help="Token shards to start from. [default: the training tokens]")
@checkpoint_option
@config_option
@click.option("--port", default=8766, show_default=True, type=click.IntRange(0, 65535), help="Port on 127.0.0.1, or 0.")
def play(
    run: Path, overrides: tuple[str, ...], tokens: Path | None, checkpoint: Path, config_name: str | None, port: int
) -> int:
    """Serve a page on 127.0.0.1 in which RUN continues clips frame by frame.

    For a generator with actions, each key is an action: keys= maps keys to actions; without it, the digits are the most
    frequent actions of the training clips. A generator without actions plays its prediction.

    \b
    vidvq generate play runs/world/generator --checkpoint runs/world/tokenizer "keys={ArrowLeft: [-1], ArrowRight: [1]}"
    """
    from vidvq.formats.generator import read_generator
    from vidvq.generate.evaluation.training_samples import training_tokens
    from vidvq.generate.requests import PlayConfig
    from vidvq.view.play import Game, build_play_page, play_routes
    from vidvq.view.serve import serve

    settings = config.load(PlayConfig, config_path(config_name), list(overrides))
    folder = tokens or next(iter(training_tokens(run)), None)
    if folder is None:
        read_generator(run)
        raise UsageError(f"{run} has no config.yaml that names its training tokens; set --tokens")
    game = Game(run, folder, checkpoint, settings)
    serve(build_play_page(game), play_routes(game), port)
    return 0


@generate.command(short_help="Move clips towards a text.", epilog=settings_epilog("generate-guide"))
@click.argument("arguments", nargs=-1, metavar="TOKENS [KEY=VALUE]...")
@click.option("--text", required=True, help="What the frames should show.")
@click.option("--clip", required=True, type=click.Path(path_type=Path), help="Folder of a CLIP model of transformers.")
@checkpoint_option
@out_option
@config_option
@json_option
@retry_option("Retry failed samples of --out.")
def guide(
    arguments: tuple[str, ...],
    text: str,
    clip: Path,
    checkpoint: Path,
    out: Path,
    config_name: str | None,
    as_json: bool,
    retry_failed: str | None,
) -> int:
    """Edit TOKENS (token shards) without a generator: move their latents along CLIP's gradient towards --text.

    Writes token shards into OUT, and decodes them into OUT/video. An interrupted job resumes with the same command.

    \b
    vidvq generate guide runs/tokens --text "a snowy street" --clip models/clip-vit-base-patch32 --out runs/snow
    """
    from vidvq.generate.requests import GuideConfig
    from vidvq.generate.stages.guide_stage import GuideStage

    arguments, retry_failed = take_reason(arguments, retry_failed)
    given, overrides = split(arguments)
    settings = config.load(GuideConfig, config_path(config_name), overrides)
    stage = GuideStage.open(given, settings, text=text, clip=clip, checkpoint=checkpoint)
    return _run(stage, given, out, checkpoint, as_json, retry_failed)


def _request(name: str, inputs: str, type_name: str, short_help: str, help: str) -> Any:
    """Register a command that generates from ``RUN``, inputs and settings."""

    def run(
        run: Path,
        arguments: tuple[str, ...],
        checkpoint: Path,
        out: Path,
        config_name: str | None,
        as_json: bool,
        retry_failed: str | None,
    ) -> int:
        from vidvq.generate import requests
        from vidvq.generate.stages.open import open_request

        arguments, retry_failed = take_reason(arguments, retry_failed)
        given, overrides = split(arguments)
        overrides = list(map(_quote_text, overrides))
        settings = config.load(getattr(requests, type_name), config_path(config_name), overrides)
        stage = open_request(run, given, settings, checkpoint)
        return _run(stage, given, out, checkpoint, as_json, retry_failed)

    command: Any = run
    for option in (
        retry_option("Retry failed samples of --out."),
        json_option,
        config_option,
        out_option,
        checkpoint_option,
    ):
        command = option(command)
    command = click.argument("arguments", nargs=-1, metavar=f"{inputs}[KEY=VALUE]...")(command)
    command = click.argument("run", type=PathOrUrl())(command)
    return generate.command(name, short_help=short_help, help=help, epilog=settings_epilog(f"generate-{name}"))(command)


def _quote_text(override: str) -> str:
    """Quote a class or a text, of which YAML would read ``no`` as a truth value and cut ``dog #1`` before the hash."""
    name, _, value = override.partition("=")
    if name not in {"class", "text"}:
        return override
    # The field of a class is named ``label``, because ``class`` is a keyword in Python.
    field = "label" if name == "class" else name
    as_yaml = value.strip() in {"", "null"} or value[0] in "'\"" or (name == "class" and _is_number(value))
    return f"{field}={value if as_yaml else flow_yaml(value)}"


def _is_number(text: str) -> bool:
    """Return whether a text is a number that is written back as the same text."""
    for kind in (int, float):
        with suppress(ValueError):
            return str(kind(text)) == text
    return False


def _run(stage: Any, inputs: list[str], out: Path, checkpoint: Path, as_json: bool, retry_failed: str | None) -> int:
    """Run a stage, decode its samples, and return the exit code."""
    from vidvq.formats.plan import has_plan
    from vidvq.jobs import CorpusUpdate, run_job

    settings = stage.config
    if retry_failed and not has_plan(out):
        raise UsageError(f"{out} has no failed samples to retry; run the command without --retry-failed first")
    summary = run_job(stage, inputs, out, CorpusUpdate(retry=retry_failed) if retry_failed else None)
    for line in summary.lines():
        log.info(line)
    if settings.format != "none" and summary.ok:
        _decode(out, checkpoint, settings.format)
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    return exit_code(summary, settings.max_failed, "samples")


def _decode(out: Path, checkpoint: Path, kind: Any) -> None:
    from vidvq.decode import DecodeConfig, run_decode

    count = run_decode(out, checkpoint, out / "video", DecodeConfig(format=kind))
    log.info(f"{log.counted(count, 'clips')} decoded into {out / 'video'}")


def _help(text: str) -> str:
    return f"""{text}

    Writes token shards into OUT, and decodes them into OUT/video with the tokenizer --checkpoint (format=none skips
    that). An interrupted job resumes with the same command. Samples depend on the seed, not on the workers.
    """


_request(
    "sample",
    "",
    "SampleConfig",
    "Generate whole clips.",
    _help("""Generate n= clips, optionally of one class (class=) or about a text (text=, or prompts= of a file).

    \b
    vidvq generate sample runs/generator --out runs/samples n=16 seed=1 sampling.steps=12
    vidvq generate sample runs/generator --out runs/samples class=cat sampling.guidance=2"""),
)
_request(
    "predict",
    "CLIPS|TOKENS|VIDEOS... ",
    "PredictConfig",
    "Continue clips from their first frames.",
    _help("""Continue CLIPS (clip shards), TOKENS (token shards) or VIDEOS from their first given= frames.

    \b
    vidvq generate predict runs/generator runs/tokens --out runs/predicted given=5 frames=33"""),
)
_request(
    "interpolate",
    "CLIPS|VIDEOS... ",
    "InterpolateConfig",
    "Generate the frames between given ones.",
    _help("""Generate the frames of CLIPS (clip shards) or VIDEOS between the first and the last one, or every= ones.

    insert= keeps all frames and generates as many between each two, which raises the frame rate.
    The frames to generate are blanked before encoding, so that they cannot leak into the condition.

    \b
    vidvq generate interpolate runs/generator runs/clips --out runs/between every=8
    vidvq generate interpolate runs/generator runs/clips --out runs/slower insert=1"""),
)
_request(
    "fill",
    "CLIPS|VIDEOS... ",
    "FillConfig",
    "Generate a region of the picture.",
    _help("""Generate the region box=[LEFT,TOP,WIDTH,HEIGHT] (pixels) of CLIPS (clip shards) or VIDEOS, or mask=FILE.

    A box that reaches outside the frame enlarges it. With outside=true, the rest of the frame is generated. Only the
    first frames of a video are used, as many as the longest training sample has. The region is blanked before
    encoding, so that it cannot leak into the condition.

    \b
    vidvq generate fill runs/generator runs/clips --out runs/filled "box=[16,16,32,32]"
    vidvq generate fill runs/generator runs/clips --out runs/repaired mask=scratches.png"""),
)
