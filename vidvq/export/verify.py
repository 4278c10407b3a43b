"""Verification of an export against its own records, and against the token shards."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from vidvq.errors import UsageError
from vidvq.export.target import Target, TokenSequence
from vidvq.export.targets import read_header, target_of
from vidvq.formats.commit import FOLDER
from vidvq.formats.export_records import ExportHeader, Part, is_export, read_part, redo_hint, tokens_digest
from vidvq.formats.token_shard import CARD, read_tokenizer_card
from vidvq.storage import resolve_path, safe_join, sha256_file

# Exceptions that readers raise for damaged files.
_UNREADABLE = (ValueError, OSError, EOFError, KeyError, IndexError, struct.error, pa.ArrowException)


def verify_export(folder: str | Path) -> tuple[list[str], int]:
    """Check an export against its records: all fields and bytes, the numbers of clips and ids, the range of the ids.

    Returns:
        One line per problem, and the number of parts.

    Raises:
        UsageError: ``export.json`` is missing or damaged.
    """
    folder = resolve_path(folder)
    if not is_export(folder):
        raise UsageError(f"{folder} has no export.json; give a directory that vidvq export wrote")
    header = read_header(folder)
    target, dtype = target_of(header), np.dtype(header.dtype)
    problems: list[str] = []
    parts: list[Part] = []
    for stem in header.parts:
        try:
            part = read_part(folder, stem)
        except UsageError as error:
            problems.append(f"{stem}: {error}")
            continue
        if part is None:
            problems.append(f"{stem}: is not finished; run the same command again")
            continue
        names = [stem + suffix for suffix in target.suffixes]
        if [file.name for file in part.files] != names:
            problems.append(f"{stem}: its record does not have the files {', '.join(names)}; {redo_hint(stem)}")
            continue
        parts.append(part)
        found = [*damaged_files(folder, part)] or [*_content(folder, part, target, header.vocabulary, dtype)]
        problems += [f"{line}; {redo_hint(stem)}" for line in found]
    problems += _card_problems(folder, header) if header.samples else []
    if len(parts) == len(header.parts):
        if tokens_digest([part.shard_sha256 for part in parts]) != header.tokens_sha256:
            problems.append("export.json: its tokens_sha256 does not match the parts; export again")
        whole = target.index_files(parts, dtype)
        for name, data in whole.items():
            path = folder / name
            if not path.is_file() or path.read_bytes() != data:
                problems.append(f"{name}: is missing or differs from the parts' records; run the same command again")
        problems += _strays(folder, header, {*whole, *(file.name for part in parts for file in part.files)})
    return problems, len(header.parts)


def _card_problems(folder: Path, header: ExportHeader) -> list[str]:
    """Describe what is wrong with the tokenizer card of an export."""
    try:
        card = read_tokenizer_card(folder)
    except UsageError as error:
        return [f"{CARD}: {error}"]
    if (card.token_fingerprint, card.codebooks) != (header.token_fingerprint, header.codebooks):
        return [f"{CARD}: is of another tokenizer than export.json; remove it, then run the same command again"]
    return []


def _strays(folder: Path, header: ExportHeader, known: set[str]) -> Iterator[str]:
    """Describe extra files in the directory that a reader could take for parts of the export."""
    suffixes = target_of(header).suffixes
    for name in sorted(path.name for path in folder.iterdir() if path.is_file()):
        if ".tmp." in name:
            yield f"{name}: was left by a killed job; run the same command again, or remove it"
        elif name.endswith(suffixes) and name not in known:
            yield f"{name}: is not in the export; move it elsewhere"
    for name in sorted(path.name for path in (folder / FOLDER).iterdir()):
        if name.removesuffix(".json") not in header.parts:
            yield f"{FOLDER}/{name}: is not the record of a part; move it elsewhere"


def damaged_files(folder: Path, part: Part, content: bool = True) -> Iterator[str]:
    """Describe the files of a part that are missing or differ from its record; only in size without ``content``."""
    for file in part.files:
        path = safe_join(folder, file.name)
        if not path.is_file():
            yield f"{path.name}: is missing"
        elif path.stat().st_size != file.bytes:
            yield f"{path.name}: has {path.stat().st_size} bytes, its record has {file.bytes}"
        elif content and sha256_file(path) != file.sha256:
            yield f"{path.name}: its bytes differ from the record"


def _content(folder: Path, part: Part, target: Target, vocabulary: int, dtype: np.dtype) -> Iterator[str]:
    paths = [folder / file.name for file in part.files]
    clips = ids = highest = 0
    try:
        for sequence in target.read(paths, dtype):
            if sequence.ndim != 1 or sequence.dtype != dtype or sequence.min(initial=0) < 0:
                raise UsageError(f"clip {clips} is not a list of ids of type {dtype}")
            clips, ids = clips + 1, ids + len(sequence)
            highest = max(highest, int(sequence.max(initial=0)))
    except _UNREADABLE as error:
        yield f"{paths[0].name}: is not readable ({_first_line(error)})"
        return
    if (clips, ids) != (part.clips, part.ids):
        yield f"{paths[0].name}: has {clips} clips and {ids} ids, its record has {part.clips} and {part.ids}"
    if highest >= vocabulary:
        yield f"{paths[0].name}: has id {highest}, outside the vocabulary of {vocabulary} ids in export.json"


def compare_part(
    paths: list[Path], target: Target, dtype: np.dtype, expected: Iterator[TokenSequence], stem: str
) -> None:
    """Compare an exported part with the expected sequences, id by id.

    Args:
        paths: files of the part.
        expected: sequences of the token shard.
        stem: stem of the part, for error messages.

    Raises:
        UsageError: the part is missing, not readable, or differs.
    """
    found = _readable(target.read(paths, dtype), paths, stem)
    for sequence in expected:
        if not np.array_equal(next(found, np.array([])), sequence.ids):
            raise UsageError(f"{paths[0]}: {sequence.key} differs; {redo_hint(stem)}")
    if next(found, None) is not None:
        raise UsageError(f"{paths[0]} has more clips than its token shard; {redo_hint(stem)}")


def _readable(sequences: Iterator[np.ndarray], paths: list[Path], stem: str) -> Iterator[np.ndarray]:
    try:
        yield from sequences
    except _UNREADABLE as error:
        missing = [path for path in paths if not path.is_file()]
        what = f"{missing[0]} is missing" if missing else f"{paths[0]} is not readable ({_first_line(error)})"
        raise UsageError(f"{what}; {redo_hint(stem)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
