"""Metadata of an export: ``export.json``, and a record per finished part."""

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
        target: name of the target, a key of :data:`vidvq.export.targets.TARGETS`.
        dtype: dtype of the ids, such as ``uint16``.
        token_fingerprint: token fingerprint of the tokenizer.
        tokens_sha256: SHA-256 (hex) of the SHA-256 sums of the token shards, one per line.
        codebooks: codebooks, sorted by offset.
        vocabulary: number of ids, special tokens included.
        specials: id of each special token.
        order: order of the ids, as in :class:`vidvq.export.config.ExportConfig`.
        axes: axes of a sequence, slowest first: ``t h w`` or ``h w t``.
        parts: stems of the file names of the parts.
        padding: always None; there is no padding id.
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
        """The header as JSON types, with the format identifier."""
        return to_dict(self) | {"format": FORMAT}


def is_export(folder: Path) -> bool:
    """Whether a directory was written by ``vidvq export``."""
    return (folder / "export.json").is_file()


def read_header(folder: Path) -> ExportHeader:
    """Read ``export.json``.

    Raises:
        UsageError: the file is damaged, or of another format.
    """
    path = folder / "export.json"
    content = read_json(path)
    if not is_mapping(content) or content.get("format") != FORMAT:
        raise UsageError(f"{path} is not an export of format {FORMAT}")
    header = validate(ExportHeader, content, f"{path}")
    target = TARGETS.get(header.target)
    if target is None or header.dtype != np.dtype(target.dtype(header.vocabulary)).name:
        raise UsageError(f"{path} is damaged: its target, vocabulary and dtype are inconsistent; export again")
    return header


def record_path(folder: Path, stem: str) -> Path:
    """Path of the record of a part."""
    return folder / FOLDER / f"{stem}.json"


def encode_part(part: Part) -> bytes:
    """Encode the record of a part."""
    return pretty_json(to_dict(part) | {"format": PART_FORMAT})


def read_part(folder: Path, stem: str) -> Part | None:
    """Read the record of a part; None if the part is unfinished.

    Raises:
        UsageError: the record is damaged.
    """
    path = record_path(folder, stem)
    if not path.exists():
        return None
    content = read_json(path)
    if not is_mapping(content) or content.get("format") != PART_FORMAT:
        raise UsageError(f"{path} is not a record of format {PART_FORMAT}; remove it and run the same command again")
    return validate(Part, content, f"{path}")


def redo_hint(stem: str) -> str:
    """The remedy for a damaged part, for error messages."""
    return f"remove {FOLDER}/{stem}.json, then run the same command again"
