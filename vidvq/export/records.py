"""What an export says of itself: ``export.json`` once, and a record for each part that is finished."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidvq.config import validate
from vidvq.errors import UsageError
from vidvq.export.target import Part
from vidvq.export.targets import TARGETS
from vidvq.formats.commit import FOLDER
from vidvq.storage import read_json

FORMAT = "vidvq.export/1"
PART_FORMAT = "vidvq.export-part/1"


@dataclass(frozen=True)
class _Header:
    """The fields of ``export.json`` that are read again."""

    target: str
    dtype: str
    vocabulary: int
    token_fingerprint: str
    specials: dict[str, int]
    order: str
    axes: str
    parts: list[str]


@dataclass(frozen=True)
class _File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Part:
    """The fields of the record of a part that are read again."""

    clips: int
    ids: int
    files: list[_File]


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
    validate(_Header, header, f"{path}")
    if (
        header["target"] not in TARGETS
        or header["dtype"] != np.dtype(TARGETS[header["target"]].dtype(header["vocabulary"])).name
    ):
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
    validate(_Part, part, f"{path}")
    return part


def redo(stem: str) -> str:
    """What makes a bad part anew."""
    return f"remove {FOLDER}/{stem}.json, then run the same command again"
