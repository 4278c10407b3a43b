"""Options and argument parsing shared by several commands."""

import os
import re
from pathlib import Path

import click

from vidvq import config
from vidvq.cli.place import Place

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")

out_option = click.option("--out", required=True, type=Place(), help="Output directory, or s3://bucket/folder.")
config_option = click.option("--config", "config_name", help="YAML file, or the name of a packaged one.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


def config_path(name: str | None) -> Path | None:
    """The file that ``--config`` names."""
    return config.find_config(name) if name else None


def is_override(argument: str) -> bool:
    """Whether an argument is a setting ``key.sub=value``; a file of that name is an input."""
    return bool(_OVERRIDE.match(argument)) and not os.path.lexists(argument)


def split(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Plain arguments, and settings ``key.sub=value``."""
    overrides = [argument for argument in arguments if is_override(argument)]
    return [argument for argument in arguments if not is_override(argument)], overrides
