"""Verification of an export against its own records, and against the token shards."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from vidvq.errors import UsageError
from vidvq.export.records import read_header, read_part, redo_hint
from vidvq.export.target import Part, Target, TokenSequence
from vidvq.export.targets import TARGETS
from vidvq.storage import sha256_file

# Exceptions that readers raise for damaged files.
_UNREADABLE = (ValueError, OSError, EOFError, KeyError, IndexError, struct.error, pa.ArrowException)


def verify_export(folder: Path) -> tuple[list[str], int]:
    """Check an export against its records: all bytes, the numbers of clips and ids, and the range of the ids.

    Returns:
        One line per problem, and the number of parts.

    Raises:
        UsageError: ``export.json`` or a record is damaged.
    """
    header = read_header(folder)
    target, dtype = TARGETS[header.target], np.dtype(header.dtype)
    problems: list[str] = []
    parts: list[Part] = []
    for stem in header.parts:
        part = read_part(folder, stem)
        if part is None:
            problems.append(f"{stem}: is not finished; run the same command again")
            continue
        parts.append(part)
        found = [*damaged_files(folder, part)] or [*_content(folder, part, target, header.vocabulary, dtype)]
        problems += [f"{line}; {redo_hint(stem)}" for line in found]
    if len(parts) == len(header.parts):
        for name, data in target.index_files(parts, dtype).items():
            path = folder / name
            if not path.is_file() or path.read_bytes() != data:
                problems.append(f"{name}: is missing or differs from the parts' records; run the same command again")
    return problems, len(header.parts)


def damaged_files(folder: Path, part: Part) -> Iterator[str]:
    """Describe the files of a part that are missing or differ from its record."""
    for file in part.files:
        path = folder / file.name
        if not path.is_file():
            yield f"{path.name}: is missing"
        elif sha256_file(path) != file.sha256:
            yield f"{path.name}: its bytes differ from the record"


def _content(folder: Path, part: Part, target: Target, vocabulary: int, dtype: np.dtype) -> Iterator[str]:
    paths = [folder / file.name for file in part.files]
    clips = ids = highest = 0
    try:
        for sequence in target.read(paths, dtype):
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
        target: format of the files.
        dtype: dtype of the ids.
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
