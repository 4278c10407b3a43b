"""Commands of corpus stages, all with the same options."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidvq import config, log
from vidvq.cli.config import STAGES, settings_epilog
from vidvq.cli.options import config_option, config_path, json_option, out_option, retry_option, split, take_reason
from vidvq.errors import UsageError
from vidvq.settings import flow_yaml

if TYPE_CHECKING:
    from vidvq.jobs import CorpusUpdate, Stage

# Settings that an update of a corpus may change: those that the plan does not depend on.
_CHANGEABLE = (
    "runtime.",
    "max_failed=",
    "quality.min_psnr=",
    "quality.max_drop=",
    "quality.min_usage=",
    "gpus=",
    "deadline_s=",
    "lists.allow_private=",
    # Those that a plan records are compared with it by the update itself, which may raise them.
    "limits.",
)
_INPUT_OPTIONS = (
    click.option("--add", is_flag=True, help="Add inputs to the corpus in --out, in new shards, with its settings."),
    click.option(
        "--remove", multiple=True, metavar="URI", help="Remove an input from the corpus in --out; may be repeated."
    ),
)


def corpus_command(
    name: str,
    load: Callable[[], "type[Stage[Any]]"],
    *,
    inputs: str,
    short_help: str,
    help: str,
    options: tuple[Callable[[Any], Any], ...] = (),
    out: Callable[[Any], Any] = out_option,
    takes_videos: bool = True,
    kind: Callable[..., click.Command] = click.Command,
) -> click.Command:
    """Build the command of a stage.

    Args:
        load: imports the stage; called when the command runs.
        inputs: name of the inputs in the usage line.
        short_help: line in the list of commands.
        options: additional options of this command, passed to ``Stage.open``.
        takes_videos: whether inputs may be videos, which ``--add`` and ``--remove`` change.
    """

    def run(
        arguments: tuple[str, ...],
        out: Path | None,
        config_name: str | None,
        as_json: bool,
        dry_run: bool,
        retry_failed: str | None,
        add: bool = False,
        remove: tuple[str, ...] = (),
        **own: Any,
    ) -> int:
        from vidvq.jobs import CorpusUpdate, estimate, run_job

        arguments, retry_failed = take_reason(arguments, retry_failed)
        given, overrides = split(arguments)
        stage_type = load()
        target = out or stage_type.default_out(given, **own)
        if add + bool(remove) + bool(retry_failed) + dry_run > 1:
            raise UsageError("--add, --remove, --retry-failed and --dry-run exclude each other; give one of them")
        update, inputs = None, given
        if add or remove or retry_failed:
            update = CorpusUpdate(tuple(given) if add else None, remove, retry_failed)
            settings, inputs = _settings_of_corpus(stage_type, given, target, config_name, overrides, update)
        else:
            settings = _load_settings(stage_type, given, config_name, overrides)
        stage = stage_type.open(inputs, settings, **own)
        if dry_run:
            return _show(estimate(stage, given), as_json)
        summary = run_job(stage, given, target, update)
        _show(summary, as_json)
        return exit_code(summary, settings.max_failed, "items")

    command: Any = run
    dry_run = click.option(
        "--dry-run", is_flag=True, help="Estimate the output and the time it takes, without writing anything."
    )
    updates = (*(_INPUT_OPTIONS if takes_videos else ()), retry_option("Retry failed items."))
    for option in reversed((*options, out, config_option, json_option, dry_run, *updates)):
        command = option(command)
    command = click.argument("arguments", nargs=-1, metavar=f"[{inputs}]... [KEY=VALUE]...")(command)
    epilog = settings_epilog(name) if name in STAGES else None
    return click.command(name, cls=kind, short_help=short_help, help=help, epilog=epilog)(command)  # type: ignore[arg-type]


def _load_settings(
    stage_type: "type[Stage[Any]]", inputs: list[str], config_name: str | None, overrides: list[str]
) -> Any:
    """Load the settings of a new job, or of one that is resumed."""
    if not inputs:
        raise UsageError(f"no inputs are given; see vidvq {stage_type.name} --help")
    settings = config.load(stage_type.config_type, config_path(config_name), overrides)
    if settings.runtime.workers in {0, 1} or (len(inputs) == 1 and Path(inputs[0]).is_file()):
        from vidvq.runtime import warm_up

        # The start of a small job is dominated by imports: let the decoding process import while this one does.
        warm_up("vidvq.corpus.frames")
    return settings


def _settings_of_corpus(
    stage_type: "type[Stage[Any]]",
    inputs: list[str],
    out: Path,
    config_name: str | None,
    overrides: list[str],
    update: "CorpusUpdate",
) -> tuple[Any, list[str]]:
    """Return the settings that a corpus to update was made with, and the inputs that its stage is opened with."""
    from vidvq.formats.plan import read_plan
    from vidvq.jobs.update import check_update

    plan = read_plan(out)
    check_update(plan, stage_type.name, inputs, update, out)
    planned = stage_type.settings_of(plan.made_from)
    settings = config.load(stage_type.config_type, config_path(config_name), overrides, planned)
    kept = dict(config.leaves(config.to_dict(config.validate(stage_type.config_type, planned))))
    for path, value in config.leaves(config.to_dict(settings)):
        if value != kept.get(path) and not f"{path}=".startswith(_CHANGEABLE):
            was = f"its {path}={flow_yaml(kept[path])}" if path in kept else "its settings"
            raise UsageError(
                f"{path}={flow_yaml(value)} cannot be changed by an update; the corpus in {out} keeps {was}"
            )
    return settings, [] if "inputs" in plan.made_from else inputs


def _show(result: Any, as_json: bool) -> int:
    for line in result.lines():
        log.info(line)
    if as_json:
        click.echo(json.dumps(asdict(result)))
    return 0


def exit_code(summary: Any, max_failed: float, unit: str) -> int:
    """Return 1, with a warning, if a larger fraction failed than ``max_failed``; else 0."""
    if summary.failed_share > max_failed:
        log.warn(f"{summary.failed_share:.1%} of the {unit} failed; the threshold is max_failed={max_failed:g}")
        return 1
    return 0
