"""Columns beside clips: shards of ``KEY.json``, one for each clip shard, in directories under ``CLIPS/columns/``.

A sample is one canonical JSON object: ``{"columns": {NAME: VALUE, ...}, "format": "vidvq.columns/1"}``. Any stage whose
shards have the prefix :data:`PREFIX` and hold such samples writes columns; ``vidvq map`` is one.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from vidvq.errors import UsageError
from vidvq.formats.commit import read_commits
from vidvq.formats.plan import Plan, has_plan, read_plan
from vidvq.formats.tar import read_samples
from vidvq.formats.where import KEYWORDS
from vidvq.storage import canonical_json, parse_json, resolve_path, sha256_bytes

FORMAT = "vidvq.columns/1"
PREFIX = "columns"
FOLDER = "columns"
Value: TypeAlias = str | int | float | bool | None
# Fields that every clip has; `where` knows them by these names.
INTRINSIC = ("key", "source", "num_frames", "height", "width", "fps", "duration_s", "carried")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_MAX_COLUMNS = 1000
_MAX_INT = 1 << 63


def check_columns(values: Any) -> dict[str, Value]:
    """Check what a function returned for one clip.

    Args:
        values: a mapping of column names to text, numbers, bools or None; scalars of numpy count as numbers.

    Returns:
        The same as plain Python types.

    Raises:
        UsageError: names the first thing that cannot be a column.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"returned {type(values).__name__}; a function returns a dict of columns")
    entries = cast(Mapping[object, object], values)
    if len(entries) > _MAX_COLUMNS:
        raise UsageError(f"returned {len(entries)} columns; at most {_MAX_COLUMNS} are allowed")
    return {(name := _check_name(key)): _check_value(name, value) for key, value in entries.items()}


def column_files(values: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of one sample by extension.

    Raises:
        UsageError: see :func:`check_columns`.
    """
    return {"json": canonical_json({"columns": check_columns(values), "format": FORMAT})}


def parse_columns(files: Mapping[str, bytes], where: str) -> dict[str, Value]:
    """Read the columns of one sample.

    Raises:
        UsageError: it holds none; ``where`` names the sample in the message.
    """
    try:
        (data,) = (files[name] for name in files if name == "json")
        content = parse_json(data, "it")
        if set(files) != {"json"} or content["format"] != FORMAT:
            raise UsageError(f"its format is not {FORMAT}")
        return check_columns(content["columns"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where} has no readable columns: {error}") from error


def read_columns(path: Path) -> Iterator[tuple[str, dict[str, Value]]]:
    """Yield ``(key, columns)`` of each clip in a shard.

    Raises:
        UsageError: the file is not a column shard, or a sample in it is damaged.
    """
    for key, files in read_samples(path):
        yield key, parse_columns(files, f"{path}: {key}")


@dataclass(frozen=True)
class ColumnSet:
    """One directory of columns.

    Attributes:
        name: name of the directory.
        folder: the directory.
        plan: its plan.
        names: names of its columns, over all clips.
        sha256: SHA-256 over the shards in their order (hex).
        unfinished: name of a shard that is not committed; "" if all are.
    """

    name: str
    folder: Path
    plan: Plan
    names: frozenset[str]
    sha256: str
    unfinished: str


@dataclass(frozen=True)
class ColumnTable:
    """The columns of all clips of a directory, merged over its column sets.

    Attributes:
        sets: the column sets by name.
        rows: key -> columns; a clip that a function failed on has none of its columns.
    """

    sets: dict[str, ColumnSet]
    rows: dict[str, dict[str, Value]]

    @property
    def names(self) -> set[str]:
        """Names of all columns."""
        return {name for each in self.sets.values() for name in each.names}


def read_table(clips: str | Path, wanted: Collection[str] | None = None) -> ColumnTable:
    """Read the columns of all clips.

    Args:
        clips: directory that ``vidvq shard`` wrote, or its URL.
        wanted: names of the columns to keep in the rows; None for all.

    Raises:
        UsageError: there is no such directory, ``wanted`` is a single name, two sets have a column of the same name, or
            a shard is damaged.
    """
    clips = resolve_path(clips)
    if not clips.is_dir():
        raise UsageError(f"{clips} is not a directory; give one that vidvq shard wrote")
    if isinstance(wanted, str):
        raise UsageError(f"wanted={wanted!r} must be a list of names, also if there is one")
    sets: dict[str, ColumnSet] = {}
    rows: dict[str, dict[str, Value]] = {}
    owner: dict[str, str] = {}
    for folder in _find(clips):
        found = _read_set(folder, wanted, rows)
        for name in sorted(found.names):
            if name in owner:
                raise UsageError(
                    f"column {name} is in {clips / FOLDER / owner[name]} and in {folder}; move one of them away"
                )
            owner[name] = found.name
        sets[found.name] = found
    return ColumnTable(sets, rows)


def _find(clips: Path) -> list[Path]:
    parent = clips / FOLDER
    folders = sorted(parent.iterdir(), key=lambda folder: folder.name) if parent.is_dir() else []
    return [folder for folder in folders if folder.is_dir() and has_plan(folder)]


def _read_set(folder: Path, wanted: Collection[str] | None, rows: dict[str, dict[str, Value]]) -> ColumnSet:
    plan = read_plan(folder)
    names: set[str] = set()
    digests: list[str] = []
    unfinished = ""
    if plan.header.prefix == PREFIX:
        for shard, commit in zip(plan.shard_names(), read_commits(folder, plan.shard_names()), strict=True):
            if commit is None:
                unfinished = unfinished or shard
                continue
            digests.append(commit.sha256 or "")
            for key, values in read_columns(folder / shard) if commit.sha256 else ():
                names.update(values)
                kept = values if wanted is None else {name: values[name] for name in values if name in wanted}
                rows.setdefault(key, {}).update(kept)
    digest = sha256_bytes("\n".join(digests).encode())
    return ColumnSet(folder.name, folder, plan, frozenset(names), digest, unfinished)


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"column {name!r} must be a name of up to 64 letters, digits and underscores")
    if name in INTRINSIC or name.lower() in KEYWORDS:
        raise UsageError(f"column {name!r} has a reserved name; give it another one")
    return name


def _check_value(name: str, value: Any) -> Value:
    # numpy is not imported for the sake of its scalars.
    plain = value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value
    if plain is None or isinstance(plain, bool):
        return plain
    if isinstance(plain, int):
        if not -_MAX_INT <= plain < _MAX_INT:
            raise UsageError(f"column {name} is {str(plain)[:40]}; an integer must fit into 64 bits")
        return int(plain)
    if isinstance(plain, float):
        if not math.isfinite(plain):
            raise UsageError(f"column {name} is {plain}; a number must be finite, None stands for no value")
        return float(plain)
    if isinstance(plain, str):
        try:
            plain.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"column {name} is text that UTF-8 cannot hold: {error.reason}") from error
        return str(plain)
    raise UsageError(f"column {name} is {type(value).__name__}; it must be text, a number, a bool or None")
