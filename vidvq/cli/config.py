"""`vidvq config`: every setting of a command, with its default, type and meaning."""

from difflib import get_close_matches
from pkgutil import resolve_name
from typing import Any, NamedTuple

import click

from vidvq import config
from vidvq.cli.options import split
from vidvq.errors import UsageError
from vidvq.settings import Setting, as_yaml, settings_of

# Value of a required setting that is not given.
_PLACEHOLDER = "REQUIRED"


class CommandSettings(NamedTuple):
    """The settings of a command.

    Attributes:
        kind: config class, as ``module:class``.
        usage: command line that takes the YAML.
        names: top-level settings, in declaration order; repeated here so that `--help` imports no stage.
    """

    kind: str
    usage: str
    names: str

    @property
    def groups(self) -> tuple[str, ...]:
        """The top-level settings."""
        return tuple(self.names.split())

    def config_type(self) -> type[Any]:
        """Import and return the config class."""
        return resolve_name(self.kind)


# Settings of the commands of `vidvq generate` that sample a generator.
_REQUEST = "seed sampling batch device precision format deadline_s max_failed runtime"
# Settings of those that take clips or videos, in addition.
_INPUT = "label text columns text_encoder video lists limits items_per_shard"
STAGES = {
    "shard": CommandSettings(
        "vidvq.shard.config:ShardConfig",
        "vidvq shard VIDEOS... --out DIR --config FILE",
        "clip cut filters lists clips_per_shard max_failed limits runtime",
    ),
    "map": CommandSettings(
        "vidvq.map.config:MapConfig",
        "vidvq map CLIPS --function FUNCTION --config FILE",
        "where deadline_s gpus max_failed runtime version arguments",
    ),
    "train": CommandSettings(
        "vidvq.train.config:TrainConfig",
        "vidvq train FILE",
        "data out seed steps model discriminator start_from train_only new_quantizer generator "
        "discriminator_optimizer loss mask degrade guard evaluation ema_decay log_every usage_every "
        "checkpoint_every keep_checkpoints zero_stage precision compile checkpoint_activations lost_after_s",
    ),
    "tokenize": CommandSettings(
        "vidvq.tokenize.config:TokenizeConfig",
        "vidvq tokenize SOURCES... --checkpoint CKPT --out DIR --config FILE",
        "video gop_frames items_per_shard lists limits decoder where batch groups device precision kernels "
        "mixed_gpus pack quality max_failed runtime",
    ),
    "generate-train": CommandSettings(
        "vidvq.generate.config:GenerateTrainConfig",
        "vidvq generate train TOKENS... --out RUN --config FILE",
        "data out seed steps objective model tasks pixels code_vectors conditions optimizer guard held_out "
        "ema_decay log_every checkpoint_every keep_checkpoints zero_stage precision lost_after_s",
    ),
    "generate-sample": CommandSettings(
        "vidvq.generate.requests:SampleConfig",
        "vidvq generate sample RUN --out DIR --config FILE",
        f"{_REQUEST} n label text prompts text_encoder frames height width fps items_per_shard",
    ),
    "generate-predict": CommandSettings(
        "vidvq.generate.requests:PredictConfig",
        "vidvq generate predict RUN CLIPS|TOKENS|VIDEOS... --out DIR --config FILE",
        f"{_REQUEST} {_INPUT} given frames",
    ),
    "generate-interpolate": CommandSettings(
        "vidvq.generate.requests:InterpolateConfig",
        "vidvq generate interpolate RUN CLIPS|VIDEOS... --out DIR --config FILE",
        f"{_REQUEST} {_INPUT} every insert",
    ),
    "generate-fill": CommandSettings(
        "vidvq.generate.requests:FillConfig",
        "vidvq generate fill RUN CLIPS|VIDEOS... --out DIR --config FILE",
        f"{_REQUEST} {_INPUT} box mask outside",
    ),
    "generate-guide": CommandSettings(
        "vidvq.generate.requests:GuideConfig",
        "vidvq generate guide TOKENS --text TEXT --clip FOLDER --out DIR --config FILE",
        "seed steps lr crops keep format max_failed runtime",
    ),
    "generate-evaluate": CommandSettings(
        "vidvq.generate.requests:EvaluateConfig",
        "vidvq generate evaluate RUN TOKENS --clips CLIPS KEY=VALUE...",
        "clips given samples seeds batch sampling compare_steps perceptual fvd_backbone fvd_frames training_samples "
        "text_encoder",
    ),
    "generate-play": CommandSettings(
        "vidvq.generate.requests:PlayConfig",
        "vidvq generate play RUN KEY=VALUE...",
        "seed starts given keys sampling",
    ),
    "decode": CommandSettings(
        "vidvq.decode.config:DecodeConfig",
        "vidvq decode TOKENS --checkpoint CKPT --out DIR KEY=VALUE...",
        "format key crf batch device precision fps runtime",
    ),
    "evaluate": CommandSettings(
        "vidvq.evaluate.config:EvaluateConfig",
        "vidvq evaluate CLIPS --checkpoint CKPT KEY=VALUE...",
        "codecs perceptual lpips_backbone lpips_net fvd_backbone fvd_frames static_deviation protocol worst",
    ),
    "export": CommandSettings(
        "vidvq.export.config:ExportConfig",
        "vidvq export TOKENS --to TARGET --out DIR KEY=VALUE...",
        "order specials samples",
    ),
}


def settings_epilog(name: str) -> str:
    """Epilog of a command's help: its settings."""
    return (
        f"Settings (KEY=VALUE): {', '.join(STAGES[name].groups)}. `vidvq config {name}` prints all of them with "
        "default, type and meaning."
    )


@click.command("config", short_help="Print every setting of a command as YAML.")
@click.argument("arguments", nargs=-1, metavar="[STAGE] [FILE] [KEY=VALUE]...")
def show_config(arguments: tuple[str, ...]) -> int:
    """Print every setting of STAGE with its type, meaning and default, as a YAML file for --config.

    STAGE is shard, map, train, tokenize, decode, evaluate, export, or generate-train, -sample, -predict, -interpolate,
    -fill, -guide, -evaluate or -play.
    With FILE (a YAML file, or the name of a packaged one) and KEY=VALUE, the values are those that the command would
    use. STAGE is optional if FILE determines it.

    \b
    vidvq config shard > shard.yaml
    vidvq config train demo steps=2000
    vidvq config runs/my.yaml
    """
    names, overrides = split(arguments)
    stage_name = names.pop(0) if names and names[0] in STAGES else None
    if len(names) > 1 and not stage_name:
        raise UsageError(f"{names[0]!r} is not a command with settings; choose from {', '.join(STAGES)}")
    if len(names) > 1:
        raise UsageError(f"one FILE is read, but {len(names)} are given: {', '.join(names)}")
    if not names and not stage_name:
        for name, stage in STAGES.items():
            click.echo(f"{name}: {', '.join(stage.groups)}")
        click.echo("`vidvq config STAGE` prints all settings of a stage.")
        return 0
    try:
        data = config.read_yaml(config.find_config(names[0])) if names else {}
    except config.ConfigError as error:
        if stage_name or not (near := get_close_matches(names[0], STAGES, 1)):
            raise
        raise UsageError(f"{names[0]!r} is not a command with settings; did you mean {near[0]}?") from error
    stage_name = stage_name or _stage_of(data, names[0])
    stage = STAGES[stage_name]
    settings = resolve(stage.config_type(), config.apply_overrides(data, overrides))
    click.echo(f"# Settings of `vidvq {stage_name}`. Usage: {stage.usage}\n")
    click.echo(as_yaml(settings), nl=False)
    return 0


def resolve(kind: type[Any], data: dict[str, Any]) -> tuple[Setting, ...]:
    """Settings of ``kind`` with the values of ``data``; required settings may be missing.

    Raises:
        ConfigError: a value is wrong.
    """
    required = [each.path for group in settings_of(kind) for each in group.walk() if each.is_required]
    missing = [path for path in required if not _is_given(data, path)]
    filled = config.apply_overrides(data, [f"{path}={_PLACEHOLDER}" for path in missing])
    return settings_of(kind, config.validate(kind, filled), missing=frozenset(missing))


def _is_given(data: dict[str, Any], path: str) -> bool:
    node: Any = data
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _stage_of(data: dict[str, Any], name: str) -> str:
    """The only command whose settings include all top-level keys of a file."""
    fits = [stage for stage, known in STAGES.items() if data.keys() <= set(known.groups)]
    if len(fits) != 1:
        which = f"matches {', '.join(fits)}" if fits else "matches no command"
        raise UsageError(f"{name} {which}; name the command: vidvq config STAGE {name}")
    return fits[0]
