"""The command line's type for a file or folder: a path of this machine or a URL of an object store; checkpoints."""

from pathlib import Path
from typing import Any

import click

from vidvq import storage
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import BUNDLED


class Place(click.ParamType):
    """See :func:`vidvq.storage.place`."""

    name = "path or url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Turn the text of an argument into a place."""
        if not isinstance(value, str):
            return value
        try:
            return storage.place(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


checkpoint_option = click.option(
    "--checkpoint",
    type=Place(),
    default=BUNDLED,
    show_default="the one that ships with vidvq",
    help="A checkpoint, or a training run (its newest).",
)
