"""What an export says of itself: ``export.json`` once, and a record for each part that is finished."""

from pathlib import Path
from typing import Any

import numpy as np

from vidvq.errors import UsageError
from vidvq.export.target import Part
from vidvq.export.targets import TARGETS
from vidvq.formats.commit import FOLDER
from vidvq.storage import read_json

FORMAT = "vidvq.export/1"
PART_FORMAT = "vidvq.export-part/1"


def is_export(folder: Path) -> bool:
    """Whether a directory was written by ``vidvq export``."""
    return (folder / "export.json").is_file()


def read_header(folder: Path) -> dict[str, Any]:
    """Read ``export.json``.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    path = folder / "export.json"
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UsageError(f"{path} is not an export of format {FORMAT}")
    sound = (
        header.get("target") in TARGETS
        and isinstance(header.get("parts"), list)
        and type(header.get("vocabulary")) is int
        and header.get("dtype") == np.dtype(TARGETS[header["target"]].dtype(header["vocabulary"])).name
    )
    if not sound:
        raise UsageError(f"{path} is damaged: its target, parts, vocabulary and dtype do not go together; export again")
    return header


def record_path(folder: Path, stem: str) -> Path:
    """Where the record of a part is."""
    return folder / FOLDER / f"{stem}.json"


def read_part(folder: Path, stem: str) -> Part | None:
    """The record of a part, or None where it is not finished.

    Raises:
        ValueError: it is damaged.
    """
    path = record_path(folder, stem)
    if not path.exists():
        return None
    part = read_json(path)
    if not isinstance(part, dict) or part.get("format") != PART_FORMAT:
        raise UsageError(f"{path} is not a record of {PART_FORMAT}; remove it and run again")
    return part


def redo(stem: str) -> str:
    """What makes a bad part anew."""
    return f"remove {FOLDER}/{stem}.json, then run the same command again"
