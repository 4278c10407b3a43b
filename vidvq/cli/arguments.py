"""What is read of the arguments of several verbs: overrides, and what is to become of a finished corpus."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidvq.errors import UsageError

if TYPE_CHECKING:
    from vidvq.corpus.amend import Change

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def split(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Plain arguments, and `key.sub=value` overrides."""
    overrides = [argument for argument in arguments if _OVERRIDE.match(argument)]
    return [argument for argument in arguments if argument not in overrides], overrides


def change_options(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--add`, `--remove` and `--retry-failed` of a verb whose inputs are called ``name``; see :func:`read_change`."""
    options = (
        click.option("--add", is_flag=True, help=f"{name} join the corpus in --out, in new shards; its settings hold."),
        click.option(
            "--remove", multiple=True, metavar="URI", help="Take an input out of the corpus in --out; may be repeated."
        ),
        click.option(
            "--retry-failed", is_flag=False, flag_value="*", metavar="[=REASON]", help="Try failed items again."
        ),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def read_change(
    arguments: tuple[str, ...], add: bool, remove: tuple[str, ...], retry_failed: str | None, dry_run: bool
) -> tuple[list[str], list[str], "Change | None"]:
    """Plain arguments, overrides, and the change that is asked for, if any.

    Raises:
        ValueError: options that do not go together.
    """
    if retry_failed and _OVERRIDE.match(retry_failed):
        # `--retry-failed key=value` takes the setting for its reason.
        arguments, retry_failed = (*arguments, retry_failed), "*"
    inputs, overrides = split(arguments)
    if add + bool(remove) + bool(retry_failed) + dry_run > 1:
        raise UsageError("--add, --remove, --retry-failed and --dry-run are one job each; give one of them")
    if not (add or remove or retry_failed):
        return inputs, overrides, None
    if inputs and not add:
        raise UsageError(f"{inputs[0]} is one argument too many; --remove and --retry-failed take no videos")
    from vidvq.corpus.amend import Change

    return inputs, overrides, Change(tuple(inputs) if add else None, remove, retry_failed)


def refuse_settings(out: Path, config_name: str | None, overrides: list[str], free: tuple[str, ...]) -> None:
    """Refuse settings that a change to a corpus may not bring; ``free`` begin those it may.

    Raises:
        ValueError: names the first.
    """
    foreign = [override for override in overrides if not override.startswith(free)]
    if foreign or config_name:
        raise UsageError(
            f"{foreign[0] if foreign else config_name} cannot be set here; the corpus in {out} keeps its settings"
        )
