"""The command that an output directory belongs to, recognized by the files that the command writes first."""

from pathlib import Path

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import is_generator, list_steps
from vidvq.formats.decoded import DECODE_SETTINGS
from vidvq.formats.export_records import is_export
from vidvq.formats.plan import has_plan, read_plan
from vidvq.storage import file_exists


def owner_of(folder: Path) -> str | None:
    """The command whose output directory ``folder`` is, such as ``vidvq tokenize``; None if it is nobody's.

    Raises:
        UsageError: the plan in it is damaged.
    """
    if has_plan(folder):
        return f"vidvq {read_plan(folder).stage}"
    if is_export(folder):
        return "vidvq export"
    if file_exists(folder / DECODE_SETTINGS):
        return "vidvq decode"
    if steps := list_steps(folder, damaged=True):
        return "vidvq generate train" if any(map(is_generator, steps)) else "vidvq train"
    return None


def refuse_owned(folder: Path, command: str, option: str = "--out") -> None:
    """Refuse an output directory of another command.

    Args:
        command: the command that asks, such as ``vidvq decode``.
        option: the option or setting that names the directory, for the error message.

    Raises:
        UsageError: names the command that the directory belongs to.
    """
    if (owner := owner_of(folder)) not in (None, command):
        raise UsageError(f"{folder} is the output directory of {owner}; give another {option}")
