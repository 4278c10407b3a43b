"""Existing outputs: skipped if they are up to date, and overwritten only with ``--force``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidvq.errors import UsageError
from vidvq.storage import pretty_json, read_json, remove_attempts, write_atomic


def is_done(path: Path, made_from: dict[str, Any], force: bool) -> bool:
    """Whether an output exists and was decoded from the same tokens with the same settings.

    Args:
        path: output file, or folder of frames.
        made_from: tokens and settings, as JSON types.

    Raises:
        UsageError: the output exists and has other content.
    """
    if force or not path.exists():
        return False
    was = read_json(_marker(path)) if _marker(path).is_file() else None
    if was == made_from:
        return True
    what = "was decoded from other tokens or settings" if was else "was not written by vidvq decode"
    raise UsageError(f"{path} exists and {what}; give another --out, or --force to overwrite it")


@contextmanager
def recorded(path: Path, made_from: dict[str, Any]) -> Iterator[None]:
    """Record in ``PATH.decode.json`` what the block's output is made from, and delete temporary files afterwards.

    For a new output the record is written first, so that it is recognized after a kill within the block.
    """
    is_new = not path.exists()
    if is_new:
        write_atomic(_marker(path), pretty_json(made_from))
    try:
        yield
    except BaseException:
        if is_new and not path.exists():
            _marker(path).unlink(missing_ok=True)
        raise
    if not is_new:
        write_atomic(_marker(path), pretty_json(made_from))
    remove_attempts(path.parent, of={path.name})


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.decode.json")
