"""Commands of stages that other packages install: entry points of the group ``vidvq.stages``.

The name of an entry point is the name of the command, and its value is the stage, a subclass of
:class:`vidvq.jobs.Stage`. Nothing of the package is imported until its command runs or shows its help.
"""

import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from vidvq.cli.corpus import corpus_command
from vidvq.cli.options import optional_out
from vidvq.errors import UsageError
from vidvq.user_code import package_of

_GROUP = "vidvq.stages"


class CommandGroup(click.Group):
    """Built-in commands and those of installed stages; built-in names take precedence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands: the built-in ones in the order of their registration, then the others."""
        return [*self.commands, *sorted(entry_points(group=_GROUP).names - self.commands.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command with a name; None if there is none."""
        if own := super().get_command(ctx, cmd_name):
            return own
        found = entry_points(group=_GROUP, name=cmd_name)
        return _build(next(iter(found))) if found else None


class _StageCommand(click.Command):
    """A command whose help text is the docstring of its stage."""

    def __init__(self, load: Callable[[], type[Any]], **options: Any) -> None:
        super().__init__(**options)
        self._load = load

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring of the stage."""
        self.help = inspect.getdoc(self._load())
        super().format_help_text(ctx, formatter)


def _build(entry: EntryPoint) -> click.Command:
    load = partial(_load, entry)
    return corpus_command(
        entry.name,
        load,
        inputs="INPUTS",
        short_help=f"Stage of the package {package_of(entry)}.",
        help="",
        out=optional_out("that of the stage, if it has one"),
        kind=partial(_StageCommand, load),
    )


def _load(entry: EntryPoint) -> type[Any]:
    from vidvq.jobs import Stage

    where = f"stage {entry.name} of the package {package_of(entry)}"
    try:
        stage = entry.load()
    except Exception as error:
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    if not (inspect.isclass(stage) and issubclass(stage, Stage)) or inspect.isabstract(stage):
        raise UsageError(
            f"{where}: {entry.value} must be a subclass of vidvq.jobs.Stage that implements all its methods"
        )
    if stage.name != entry.name:
        raise UsageError(f"{where} has the name {stage.name!r}; its entry point must have the same name")
    return stage
