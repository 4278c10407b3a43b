"""Option types, shared options and argument parsing of the commands."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from vidvq import config, log, storage
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import BUNDLED, resolve_checkpoint
from vidvq.formats.plugin_reference import find_plugin
from vidvq.settings import flow_yaml

# The same as in :mod:`vidvq.jobs.update`, which is slow to import.
_ANY_REASON = "*"
# Enough for the title of a page (bytes).
_START_BYTES = 4096
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


class PathOrUrl(click.ParamType):
    """Parameter type of a local path or an object store URL; see :func:`vidvq.storage.resolve_path`."""

    name = "path or url"
    resolve = staticmethod(storage.resolve_path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Convert an argument to a path object; fails with a usage error if the URL is not supported."""
        if not isinstance(value, str):
            return value
        try:
            return self.resolve(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class OutputFile(PathOrUrl):
    """Parameter type of a file to write at the end of a command; a place that cannot hold it is refused first.

    Args:
        start: pattern of the start of such a file. Other files are not overwritten, unless they are empty or at a URL;
            nor is anything but a regular file, such as a pipe.
    """

    name = "path or url"

    def __init__(self, start: bytes) -> None:
        self._start = start

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Convert an argument to a path object."""
        path = super().convert(value, param, ctx)
        if storage.is_remote(path):
            return path
        if path.is_dir():
            self.fail(f"{path} is a folder; give a file", param, ctx)
        if path.exists() and not (path.is_file() and self._may_replace(path)):
            self.fail(f"{path} exists and was not written by this option; give another file, or remove it", param, ctx)
        above = next(each for each in path.absolute().parents if os.path.lexists(each))
        if not above.is_dir() or not os.access(above, os.W_OK):
            fault = "read-only" if above.is_dir() else "not a folder"
            self.fail(f"{path} cannot be written, because {above} is {fault}; give another file", param, ctx)
        return path

    def _may_replace(self, path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
        return not start or re.match(self._start, start, re.DOTALL) is not None


class TokenizerPath(PathOrUrl):
    """Parameter type of a checkpoint, a training run, or a tokenizer of another package.

    Such a tokenizer is named as in :mod:`vidvq.formats.plugin_reference`, and its code is run; for a module or file,
    which is not installed by its name, a warning says so.
    """

    name = "checkpoint"
    resolve = staticmethod(resolve_checkpoint)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Convert an argument to a path object, and ``bundled`` to the bundled checkpoint."""
        path = super().convert(value, param, ctx)
        reference = find_plugin(path)
        if reference and reference.attribute:
            log.warn(f"--checkpoint {reference} runs the code of {reference.name}")
        return path


checkpoint_option = click.option(
    "--checkpoint",
    type=TokenizerPath(),
    default=BUNDLED,
    show_default="the bundled checkpoint",
    help="Checkpoint, training run (its newest checkpoint is used), or tokenizer of another package.",
)
out_option = click.option("--out", required=True, type=PathOrUrl(), help="Output directory, or s3://bucket/folder.")


def optional_out(default: str) -> Callable[[Any], Any]:
    """Option ``--out`` of a command that has a default for it."""
    return click.option("--out", type=PathOrUrl(), show_default=default, help="Output directory.")


run_out_option = click.option("--out", metavar="RUN", help="Run directory; the same as out=.")
config_option = click.option("--config", "config_name", help="YAML file, or name of a packaged config.")


def retry_option(help: str) -> Callable[[Any], Any]:
    """Option ``--retry-failed``, with an optional reason."""
    return click.option("--retry-failed", is_flag=False, flag_value=_ANY_REASON, metavar="[=REASON]", help=help)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


def config_path(name: str | None) -> Path | None:
    """Path of the config that ``--config`` names; None if the option is absent."""
    return config.find_config(name) if name else None


def is_override(argument: str) -> bool:
    """Whether an argument is a setting ``key.sub=value``; a file of that name is an input."""
    return bool(_OVERRIDE.match(argument)) and not os.path.lexists(argument)


def take_reason(arguments: tuple[str, ...], reason: str | None) -> tuple[tuple[str, ...], str | None]:
    """Return the arguments and the reason of ``--retry-failed``; None if the option is absent."""
    if reason and is_override(reason):
        # In `--retry-failed key=value` click takes the setting for the reason.
        return (*arguments, reason), _ANY_REASON
    return arguments, reason


def with_option(overrides: Sequence[str], name: str, value: str | None) -> list[str]:
    """Add the setting that the option ``--NAME`` stands for, if it is given.

    Raises:
        UsageError: the setting is given too.
    """
    if value is None:
        return list(overrides)
    if same := next((each for each in overrides if each.startswith(f"{name}=")), None):
        raise UsageError(f"--{name} {value} and {same} are one setting; give one of them")
    return [*overrides, f"{name}={flow_yaml(value)}"]


def split(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split arguments into inputs and settings ``key.sub=value``."""
    overrides = [argument for argument in arguments if is_override(argument)]
    return [argument for argument in arguments if not is_override(argument)], overrides
