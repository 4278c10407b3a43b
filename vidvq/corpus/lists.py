"""Lists of videos: txt, csv, tsv, jsonl and parquet files, read as streams."""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import time, timedelta
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vidvq.config import to_dict
from vidvq.corpus.download import open_within
from vidvq.corpus.source import Source, base_name, carried_json, failed_source, shown, source_at, uri_of
from vidvq.errors import UsageError
from vidvq.formats.where import Untyped, Where
from vidvq.log import info, warn
from vidvq.settings import PathName
from vidvq.storage import is_chained, is_remote
from vidvq.video.limits import Limits

_JSON_SUFFIXES = (".jsonl", ".ndjson")
LIST_SUFFIXES = (".txt", ".csv", ".tsv", *_JSON_SUFFIXES, ".parquet")
_URI_COLUMNS = (
    "uri url path video file video_path video_url video_uri file_path filepath file_name filename videofile contenturl"
).split()
_START_COLUMNS = "start_s start start_time start_sec start_seconds begin begin_s".split()
_END_COLUMNS = "end_s end end_time end_sec end_seconds stop stop_s".split()
_LIKE_A_RANGE = re.compile(r"(^|_)(start|begin|end|stop|from|to|t0|t1|timestamps?|range|segment)(_|$)")
# With a start and no end, a duration is one of a range too; otherwise it is that of the whole video.
_FROM_A_START = re.compile(f"{_LIKE_A_RANGE.pattern}|duration")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):([0-5]?\d(?:[.,]\d*)?)")
_WHERE = "lists.where"
_SCHEMES = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})
_MAX_PATH_BYTES = 4096
_ROWS_PER_BATCH = 4096
_BLOBS_PER_BATCH = 16
_ROWS_AT_ONCE = 64
_MAX_TEXT_BYTES = 1 << 20
# Longer lines are those of other files (characters).
_MAX_LINE = 16 << 20
_DURATIONS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_BUFFER_BYTES = 1 << 20
# pyarrow creates these functions when it is imported, invisible to type checkers.
pc: Any = pyarrow.compute


@dataclass(frozen=True)
class ListPolicy:
    """Columns of csv, tsv, jsonl and parquet lists.

    Attributes:
        uri: column with the path or URL of the video; None takes the first of uri, url, path, video, file and other
            usual names.
        start: column with the start of the range to use (seconds, or ``HH:MM:SS.mmm``); None takes ``start_s``,
            ``start`` or another usual name where the list has one, "" takes none.
        end: column with the end of the range to use, as ``start``; None takes ``end_s``, ``end`` or another usual name.
        carry: columns written to each clip's JSON, under ``carried``. For a tar of videos: fields of ``KEY.json``, and
            ``txt`` for the text of ``KEY.txt``.
        where: expression over the columns of a list that selects its rows; None for all. The other rows are not part of
            the plan.
        roots: folders that the local files of a list must be in; none for any. A list at a URL cannot name local files.
            URLs in a list may be ``http``, ``https``, ``s3``, ``gs``, ``az``, ``abfs`` and ``hf``.
        allow_private: whether URLs may lead to private, loopback and link-local addresses.
    """

    uri: str | None = None
    start: str | None = None
    end: str | None = None
    carry: tuple[str, ...] = ()
    where: str | None = None
    roots: tuple[PathName, ...] = ()
    allow_private: bool = False

    def __post_init__(self) -> None:
        if self.where is not None:
            Where(self.where, _WHERE)

    def identity(self) -> dict[str, Any]:
        """The settings that decide what is listed, as plans keep them: ``where`` and ``roots`` only if they are set."""
        settings = to_dict(self)
        del settings["allow_private"]
        return {name: value for name, value in settings.items() if name not in {"where", "roots"} or value}

    def refuse_where(self, path: Path) -> None:
        """Refuse an expression over the columns of a file that has none.

        Raises:
            UsageError: names the file.
        """
        if self.where is not None:
            raise UsageError(f"{_WHERE} selects rows of csv, tsv, jsonl and parquet lists; {path} has no columns")


def is_list(path: Path) -> bool:
    """Whether a path has the suffix of a list."""
    return base_name(path).endswith(LIST_SUFFIXES)


def names_videos(schema: pa.Schema) -> bool:
    """Whether a table has a column by which it is a list of videos, without ``lists.uri``."""
    return any(name.lower() in _URI_COLUMNS for name in schema.names)


def read_list(
    path: Path, policy: ListPolicy, passed: Counter[str], deadline_s: float = Limits.download_deadline_s
) -> Iterator[Source]:
    """Yield the videos that a list names, by its suffix, and a failed entry for each row that cannot be understood.

    A relative path is relative to the list. A video inside a parquet file (Hugging Face's struct of ``bytes`` and
    ``path``) stays there.

    Args:
        passed: counts the rows that name no video.
        deadline_s: time limit of each read of a remote list (seconds).

    Raises:
        UsageError: it is damaged, or lacks a column that the policy names.
        StoreError: its server does not answer in time.
    """
    columns = _Columns(path, policy)
    selection = _Selection(path, policy) if policy.where is not None else None

    # A line of jsonl may lack a column that others have.
    same_columns = not base_name(path).endswith(_JSON_SUFFIXES)

    def use(names: Sequence[str]) -> set[str]:
        columns.learn(names)
        if same_columns:
            columns.check()
        return columns.used | (selection.use(names) if selection else set())

    try:
        for number, row in enumerate(_rows(path, deadline_s, use)):
            if selection and not selection.selects(row):
                continue
            if source := columns.read(row, number):
                yield source
            else:
                passed["rows without a video"] += 1
        if not same_columns and columns.names:
            columns.check()
        if selection:
            selection.finish()
    except UsageError:
        raise
    except (ValueError, csv.Error, RecursionError, pa.ArrowException) as error:
        raise UsageError(f"list {path} cannot be read: {' '.join(str(error).split())}") from error


def read_blob(file: IO[bytes], column: str, row: int) -> bytes:
    """The bytes of a video inside a parquet file.

    Args:
        column: a struct with a field ``bytes``.
        row: number of the row, from 0.

    Raises:
        IndexError: it has no such row.
    """
    table = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if row < rows:
            batches = table.iter_batches(1, row_groups=[group], columns=[f"{column}.bytes"])
            for index, batch in enumerate(batches):
                if index == row:
                    return batch.column(0)[0].as_py()["bytes"]
        row -= rows
    raise IndexError(f"row {row}")


@dataclass(frozen=True)
class _Blob:
    """A video inside a parquet file."""

    size: int
    path: str | None


def _rows(
    path: Path, deadline_s: float, use: Callable[[Sequence[str]], Collection[str]]
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a list.

    Args:
        use: called with the names of columns before the first row that has them; returns those to read, which are the
            only ones in a row of a parquet file.
    """
    name = base_name(path)
    if name.endswith(".parquet"):
        yield from _parquet_rows(path, deadline_s, use)
        return
    # One name that is not UTF-8 costs its own row alone.
    with io.TextIOWrapper(
        open_within(path, deadline_s), encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as file:
        lines = _lines(file, path)
        if name.endswith((".csv", ".tsv")):
            csv.field_size_limit(_MAX_LINE)
            rows = csv.DictReader(lines, delimiter="\t" if name.endswith(".tsv") else ",", strict=True)
            if rows.fieldnames:
                rows.fieldnames = [column.strip() for column in rows.fieldnames]
                _refuse_repeated(path, rows.fieldnames, use([column for column in rows.fieldnames if column]))
            yield from rows
        elif name.endswith(".txt"):
            use(["uri"])
            yield from ({"uri": text} for text in lines if text.strip())
        else:
            yield from _json_rows(lines, path, use)


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    while text := file.readline(_MAX_LINE):
        if "\0" in text:
            raise UsageError(f"list {path} is not text in UTF-8 (it holds a NUL byte); save it as UTF-8")
        if len(text) == _MAX_LINE:
            raise UsageError(f"list {path} has a line of over {_MAX_LINE} characters; give one video in each line")
        yield text


def _json_rows(
    lines: Iterator[str], path: Path, use: Callable[[Sequence[str]], Collection[str]]
) -> Iterator[Mapping[str, Any]]:
    names = set[str]()
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text.rstrip())
        except (ValueError, RecursionError) as error:
            fault = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise UsageError(f"list {path}: line {number} is not a JSON object ({fault}); correct it") from error
        if not isinstance(row, dict):
            raise UsageError(f"list {path}: line {number} is a {type(row).__name__}; each must be a JSON object")
        if new := [name for name in row if name not in names]:
            names.update(new)
            use(new)
        yield row


def _parquet_rows(
    path: Path, deadline_s: float, use: Callable[[Sequence[str]], Collection[str]]
) -> Iterator[Mapping[str, Any]]:
    with open_within(path, deadline_s) as file:
        schema = pq.read_schema(file)
        names = sorted(use(schema.names), key=schema.names.index)
        _refuse_repeated(path, schema.names, names)
        texts = [name for name in names if _is_text(schema.field(name).type)]
        # Texts stay packed until their length is known: one that all rows repeat takes next to no room in the file.
        table = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, read_dictionary=texts)
        blobs = {name for name in names if _holds_videos(schema.field(name).type)}
        size = _BLOBS_PER_BATCH if blobs else _ROWS_PER_BATCH
        for batch in table.iter_batches(batch_size=size, columns=names):
            for name in names:
                _refuse_long(batch.column(name), name)
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                part = batch.slice(start, _ROWS_AT_ONCE)
                columns = [_blobs(part.column(name)) if name in blobs else _values(part.column(name)) for name in names]
                yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _refuse_repeated(path: Path, names: Sequence[str], used: Collection[str]) -> None:
    """Refuse a list that has a column which is used more than once."""
    if twice := next((name for name in names if name in used and names.count(name) > 1), ""):
        raise UsageError(f"list {path} has several columns {twice!r}; rename all but one")


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*tests, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _values(column: pa.Array) -> list[Any]:
    """The values of a column; times that Python cannot hold, such as nanoseconds, as text, and durations in seconds."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        if pa.types.is_duration(column.type):
            unit = _DURATIONS[column.type.unit]
            return [None if ticks is None else ticks * unit for ticks in column.cast(pa.int64()).to_pylist()]
        return column.cast(pa.string()).to_pylist()


def _refuse_long(column: pa.Array, name: str) -> None:
    if isinstance(column, pa.DictionaryArray):
        longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
        if longest > _MAX_TEXT_BYTES:
            raise ValueError(f"column {name} has a text of {longest} bytes; at most {_MAX_TEXT_BYTES} are allowed")


def _holds_videos(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
        return False
    return pa.types.is_binary(kind.field("bytes").type) or pa.types.is_large_binary(kind.field("bytes").type)


def _blobs(column: pa.Array) -> list[_Blob | None]:
    sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
    paths = pc.struct_field(column, "path").to_pylist()
    return [
        None if size is None and path is None else _Blob(size or 0, path)
        for size, path in zip(sizes, paths, strict=True)
    ]


class _Selection:
    """Selection of the rows of a list by an expression, and its count."""

    def __init__(self, path: Path, policy: ListPolicy) -> None:
        name = base_name(path)
        if name.endswith(".txt"):
            policy.refuse_where(path)
        self._path, self._where = path, Where(policy.where or "", _WHERE)
        self._untyped = name.endswith((".csv", ".tsv"))
        self._same_columns = not name.endswith(_JSON_SUFFIXES)
        self._names: set[str] = set()
        self._rows = self._selected = 0

    def use(self, names: Sequence[str]) -> set[str]:
        """The columns that the expression needs, of all names of a file that stores columns."""
        self._names.update(names)
        return {name for column in self._where.columns for name in (column, column.partition(".")[0])} & set(names)

    def selects(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is selected."""
        self._names.update(name for name in row if name)
        if self._same_columns and not self._rows:
            self._check()
        self._rows += 1
        if self._untyped:
            # An empty cell is null.
            row = {name: Untyped(row[name]) if row.get(name) else None for name in self._where.columns}
        selected = self._where.selects(row)
        self._selected += selected
        return selected

    def finish(self) -> None:
        """Refuse a column that no row had, and log how many rows were selected."""
        if self._rows:
            self._check()
        info(f"{_WHERE} selects {self._selected} of {self._rows} rows of {self._path}")

    def _check(self) -> None:
        nested = {name for name in self._where.columns if name.partition(".")[0] in self._names}
        self._where.check_columns(self._names | nested)


class _Columns:
    """The meaning of the columns of a list.

    Attributes:
        names: the columns found until now, in order.
    """

    def __init__(self, path: Path, policy: ListPolicy) -> None:
        self._path, self._policy = path, policy
        self._carry, self._roots = policy.carry, policy.roots
        self._table = source_at(uri_of(path))
        self.names: dict[str, None] = {}
        self._uri: str | None = None
        self._start: str | None = None
        self._end: str | None = None
        # Number of each unreadable range of a video.
        self._faults: dict[str, dict[str, int]] = {}

    @property
    def used(self) -> set[str]:
        """Columns that are read."""
        return {name for name in (self._uri, self._start, self._end, *self._carry) if name}

    def learn(self, names: Sequence[str]) -> None:
        """Find the meaning of further columns; those found before keep theirs.

        Raises:
            UsageError: no column names videos.
        """
        self.names |= dict.fromkeys(names)
        # A usual name among the columns before would have been found, so that only new ones are searched.
        lower = {name.lower(): name for name in reversed(names)}

        def find(known: str | None, wanted: str | None, usual: Sequence[str]) -> str | None:
            given = wanted if known is None else known
            return given if given is not None else next((lower[name] for name in usual if name in lower), None)

        self._uri = find(self._uri, self._policy.uri or None, _URI_COLUMNS)
        if self._uri is None:
            raise UsageError(
                f"list {self._path} has none of the columns {', '.join(_URI_COLUMNS)}; "
                f"name one of {', '.join(self.names)} by lists.uri"
            )
        self._start = find(self._start, self._policy.start, _START_COLUMNS)
        self._end = find(self._end, self._policy.end, _END_COLUMNS)

    def check(self) -> None:
        """Check that the columns of the settings are there, and warn of a range that is not used.

        Raises:
            UsageError: one is missing.
        """
        policy = self._policy
        wanted = [("uri", policy.uri), ("start", policy.start), ("end", policy.end)]
        for setting, name in [*wanted, *(("carry", name) for name in policy.carry)]:
            if name and name not in self.names:
                there = ", ".join(self.names)
                raise UsageError(f"list {self._path} has no column {name!r} (lists.{setting}); it has {there}")
        like = _FROM_A_START if self._start and not self._end else _LIKE_A_RANGE
        unused = [name for name in self.names if name not in self.used and like.search(name.lower())]
        if unused and policy.start is None and policy.end is None and not (self._start and self._end):
            warn(
                f"list {self._path} has columns that look like a range and are not used: {', '.join(unused)}; "
                "set lists.start and lists.end if they are seconds"
            )

    def read(self, row: Mapping[str, Any], number: int) -> Source | None:
        """The video of a row; None if the row names none."""
        source = self._video(row.get(self._uri or ""), number)
        if source is None:
            return None
        source = replace(source, carried=carried_json({name: row.get(name) for name in self._carry}))
        try:
            start, end = self._seconds(row, self._start), self._seconds(row, self._end)
        except ValueError as error:
            # The range keeps the entry apart from one for the whole video, and from others of it.
            faults = self._faults.setdefault(source.uri, {})
            start = -float(faults.setdefault(str(error), len(faults) + 1))
            return replace(source, size=-1, version=f"!bad_range: {shown(str(error))}", start_s=start)
        return replace(source, start_s=start, end_s=end)

    def _video(self, value: Any, number: int) -> Source | None:
        if isinstance(value, _Blob):
            if value.size:
                uri = f"{self._table.uri}#{self._uri}/{number}/{value.path or ''}"
                return replace(self._table, uri=uri, size=value.size, offset=number)
            value = value.path
        if value is None or value != value:
            return None
        if isinstance(value, bytes):
            if len(value) > _MAX_PATH_BYTES:
                detail = f"holds {len(value)} bytes, which are not a path; lists.uri={self._uri} must name videos"
                return failed_source(f"{uri_of(self._path)}#{self._uri}/{number}", "bad_name", detail)
            value = value.decode("utf-8", "surrogateescape")
        text = str(value).strip()
        if not text:
            return None
        if fault := self._fault(text):
            return failed_source(text, "not_allowed", fault)
        if "://" not in text:
            # A list travels with its videos.
            return source_at(uri_of(self._path.parent / text))
        # Asking a store about each of millions of videos would take longer than to plan them.
        return Source(text) if shown(text) == text else source_at(text)

    def _fault(self, text: str) -> str:
        """Why a list may not name a place; "" if it may."""
        scheme, sign, _ = text.partition("://")
        if sign:
            allowed = scheme.lower() in _SCHEMES and not is_chained(text)
            return (
                "" if allowed else f"has a scheme that a list may not name; allowed are {', '.join(sorted(_SCHEMES))}"
            )
        if is_remote(self._path) or not self._roots:
            return ""
        place = (self._path.parent / text).resolve()
        inside = any(place.is_relative_to(Path(root).resolve()) for root in self._roots)
        return "" if inside else "is in none of the folders of lists.roots"

    def _seconds(self, row: Mapping[str, Any], column: str | None) -> float | None:
        value = row.get(column) if column else None
        try:
            return _parse_seconds(value)
        except ValueError as error:
            raise ValueError(f"has {column} {str(value)[:80]!r}; needs seconds or HH:MM:SS.mmm") from error


def _parse_seconds(value: Any) -> float | None:
    """A time in seconds; None for none.

    Raises:
        ValueError: it is not a finite time.
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        return value.total_seconds()
    text = value.isoformat() if isinstance(value, time) else str(value).strip()
    if not text:
        return None
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, rest = clock.groups()
        seconds = 3600 * float(hours or 0) + 60 * float(minutes) + float(rest.replace(",", "."))
    else:
        seconds = float(text)
    if math.isinf(seconds):
        raise ValueError("not finite")
    return None if math.isnan(seconds) else seconds
