"""What an export says of itself: ``export.json`` once, and a record for each part that is finished."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidvq.codebook import Codebook
from vidvq.config import is_mapping, to_dict, validate
from vidvq.errors import UsageError
from vidvq.export.target import Part
from vidvq.export.targets import TARGETS
from vidvq.formats.commit import FOLDER
from vidvq.storage import pretty_json, read_json

FORMAT = "vidvq.export/1"
PART_FORMAT = "vidvq.export-part/1"


@dataclass(frozen=True)
class ExportHeader:
    """The content of ``export.json``.

    Attributes:
        target: one of :data:`vidvq.export.targets.TARGETS`.
        dtype: name of the ids' dtype.
        token_fingerprint: of the tokenizer.
        tokens_sha256: SHA-256 over those of the token shards, one a line (hex).
        codebooks: in the order of their offsets.
        vocabulary: number of ids, special tokens included.
        specials: id of each special token.
        order, axes: order of the codes, as in :class:`vidvq.export.config.ExportConfig`, and the axes it gives.
        parts: stems of the parts' files.
        padding: there is no id for it.
    """

    target: str
    dtype: str
    token_fingerprint: str
    tokens_sha256: str
    codebooks: tuple[Codebook, ...]
    vocabulary: int
    specials: dict[str, int]
    order: str
    axes: str
    parts: tuple[str, ...]
    padding: None = None

    def to_json(self) -> dict[str, Any]:
        """JSON types, with the format."""
        return to_dict(self) | {"format": FORMAT}


def is_export(folder: Path) -> bool:
    """Whether a directory was written by ``vidvq export``."""
    return (folder / "export.json").is_file()


def read_header(folder: Path) -> ExportHeader:
    """Read ``export.json``.

    Raises:
        UsageError: it is damaged, or of another format.
    """
    path = folder / "export.json"
    content = read_json(path)
    if not is_mapping(content) or content.get("format") != FORMAT:
        raise UsageError(f"{path} is not an export of format {FORMAT}")
    header = validate(ExportHeader, content, f"{path}")
    target = TARGETS.get(header.target)
    if target is None or header.dtype != np.dtype(target.dtype(header.vocabulary)).name:
        raise UsageError(f"{path} is damaged: its target, parts, vocabulary and dtype do not go together; export again")
    return header


def record_path(folder: Path, stem: str) -> Path:
    """Where the record of a part is."""
    return folder / FOLDER / f"{stem}.json"


def encode_part(part: Part) -> bytes:
    """The record of a part as it is stored."""
    return pretty_json(to_dict(part) | {"format": PART_FORMAT})


def read_part(folder: Path, stem: str) -> Part | None:
    """The record of a part, or None where it is not finished.

    Raises:
        UsageError: it is damaged.
    """
    path = record_path(folder, stem)
    if not path.exists():
        return None
    content = read_json(path)
    if not is_mapping(content) or content.get("format") != PART_FORMAT:
        raise UsageError(f"{path} is not a record of {PART_FORMAT}; remove it and run again")
    return validate(Part, content, f"{path}")


def redo(stem: str) -> str:
    """What makes a bad part anew."""
    return f"remove {FOLDER}/{stem}.json, then run the same command again"
