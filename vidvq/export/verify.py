"""Whether an export is whole by its own records, and whether it holds what the token shards hold."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from vidvq.errors import UsageError
from vidvq.export.records import read_header, read_part, redo
from vidvq.export.target import Part, Sequence, Target
from vidvq.export.targets import TARGETS
from vidvq.storage import sha256_file

# What readers say of damaged bytes.
_UNREADABLE = (ValueError, OSError, EOFError, KeyError, IndexError, struct.error, pa.ArrowException)


def verify_export(folder: Path) -> tuple[list[str], int]:
    """Check an export against its records: every byte, the number of clips and ids, and every id's range.

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
        problems += [f"{line}; {redo(stem)}" for line in found]
    if len(parts) == len(header.parts):
        for name, data in target.whole(parts, dtype).items():
            path = folder / name
            if not path.is_file() or path.read_bytes() != data:
                problems.append(f"{name}: is missing or differs from the parts' records; run the same command again")
    return problems, len(header.parts)


def damaged_files(folder: Path, part: Part) -> Iterator[str]:
    """Say which files of a part are missing or hold other bytes than its record names."""
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
        yield f"{paths[0].name}: holds {clips} clips of {ids} ids, its record says {part.clips} of {part.ids}"
    if highest >= vocabulary:
        yield f"{paths[0].name}: has the id {highest}, export.json says that ids are below {vocabulary}"


def compare(paths: list[Path], target: Target, dtype: np.dtype, expected: Iterator[Sequence], stem: str) -> None:
    """Read a part back and compare it with the sequences that it should hold, id by id.

    Raises:
        UsageError: it is missing or not readable, or the first difference.
    """
    found = _readable(target.read(paths, dtype), paths, stem)
    for sequence in expected:
        if not np.array_equal(next(found, np.array([])), sequence.ids):
            raise UsageError(f"{paths[0]}: {sequence.key} differs; {redo(stem)}")
    if next(found, None) is not None:
        raise UsageError(f"{paths[0]} holds more than its token shard; {redo(stem)}")


def _readable(sequences: Iterator[np.ndarray], paths: list[Path], stem: str) -> Iterator[np.ndarray]:
    try:
        yield from sequences
    except _UNREADABLE as error:
        missing = [path for path in paths if not path.is_file()]
        what = f"{missing[0]} is missing" if missing else f"{paths[0]} is not readable ({_first_line(error)})"
        raise UsageError(f"{what}; {redo(stem)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
