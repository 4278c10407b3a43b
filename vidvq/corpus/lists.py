"""Lists of videos: txt, csv, jsonl and parquet files, and tars that hold the videos themselves. Read as streams."""

import csv
import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from vidvq.errors import UsageError
from vidvq.formats.tar import check_name
from vidvq.storage import canonical_json

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
_URI_COLUMNS = ("uri", "url", "path", "video", "file")
_RANGE_COLUMNS = {"start": "start_s", "end": "end_s"}
_MAX_SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True)
class ListPolicy:
    """Columns of csv, tsv, jsonl and parquet lists.

    Attributes:
        uri: column with the path or URL of the video; None takes the first of uri, url, path, video and file.
        start, end: column with the start (or end) of the range to use (seconds); None takes ``start_s`` (or ``end_s``)
            where the list has it.
        carry: columns written to each clip's JSON, under ``carried``. For a tar of videos: fields of ``KEY.json``, and
            ``txt`` for the text of ``KEY.txt``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    uri: str | None = None
    start: str | None = None
    end: str | None = None
    carry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """What a list says of one video: see :class:`vidvq.corpus.inputs.Source`."""

    uri: str
    start_s: float | None = None
    end_s: float | None = None
    carried: str = ""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A video inside a tar: its member name, where its bytes are, and the columns beside it."""

    uri: str
    offset: int
    size: int
    carried: str


def read_list(path: Path, policy: ListPolicy) -> Iterator[Line]:
    """Yield the lines of a list, by its suffix. An empty line, or one without a uri, is skipped.

    Raises:
        ValueError: it is damaged, is not UTF-8, or lacks a column that the policy names.
    """
    try:
        if path.suffix.lower() == ".txt":
            with path.open("r", encoding="utf-8") as file:
                for text in file:
                    if text.strip():
                        yield Line(text.strip())
            return
        columns: _Columns | None = None
        for row in _rows(path):
            columns = columns or _Columns(path, policy, row)
            line = columns.read(row)
            if line.uri:
                yield line
    except UsageError:
        raise
    except (ValueError, csv.Error, RecursionError, pa.ArrowException) as error:
        raise UsageError(f"list {path} cannot be read: {' '.join(str(error).split())}") from error


def read_tar_list(path: Path, policy: ListPolicy, suffixes: frozenset[str]) -> Iterator[TarMember]:
    """Yield the videos in a WebDataset tar, and beside each what of its ``KEY.json`` and ``KEY.txt`` is to be carried.

    Raises:
        ValueError: not a readable tar.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            key, videos, carried = "", [], {}
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]
                if not info.isreg():
                    continue
                stem, _, extension = info.name.partition(".")
                if stem != key:
                    yield from _sample(videos, carried)
                    key, videos, carried = stem, [], {}
                if f".{extension.rpartition('.')[2].lower()}" in suffixes:
                    check_name(info.name.replace("/", "-"))
                    videos.append((info.name, info.offset_data, info.size))
                elif extension in {"json", "txt"} and policy.carry and info.size <= _MAX_SIDECAR_BYTES:
                    sidecar = tar.extractfile(info)
                    assert sidecar is not None
                    carried |= _sidecar(sidecar.read(), extension, policy.carry, f"{path}: {info.name}")
            yield from _sample(videos, carried)
    except UsageError:
        raise
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is not a readable tar: {error}") from error


def _sample(videos: list[tuple[str, int, int]], carried: dict[str, Any]) -> Iterator[TarMember]:
    text = canonical_json(carried).decode() if carried else ""
    for name, offset, size in videos:
        yield TarMember(name, offset, size, text)


def _sidecar(data: bytes, extension: str, carry: tuple[str, ...], where: str) -> dict[str, Any]:
    try:
        if extension == "txt":
            return {"txt": data.decode()} if "txt" in carry else {}
        fields = json.loads(data)
        return {name: fields[name] for name in carry if name in fields} if isinstance(fields, dict) else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} cannot be read: {error}; leave it out, or set lists.carry=[]") from error


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with path.open("rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=4096):
                yield from batch.to_pylist()
        return
    with path.open("r", encoding="utf-8-sig", newline="") as file:
        if suffix in {".csv", ".tsv"}:
            yield from csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
            return
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            row = json.loads(text)
            if not isinstance(row, dict):
                raise UsageError(f"list {path}: line {number} is a {type(row).__name__}; each must be a JSON object")
            yield row


class _Columns:
    """Which columns of a list mean what, decided on its first row."""

    def __init__(self, path: Path, policy: ListPolicy, first: Mapping[str, Any]) -> None:
        self.carry = policy.carry
        there = ", ".join(first)

        def find(setting: str, wanted: str | None, usual: tuple[str, ...]) -> str | None:
            if wanted and wanted not in first:
                raise UsageError(f"list {path} has no column {wanted!r} (lists.{setting}); it has {there}")
            return wanted or next((name for name in usual if name in first), None)

        uri = find("uri", policy.uri, _URI_COLUMNS)
        if uri is None:
            raise UsageError(
                f"list {path} has none of the columns {', '.join(_URI_COLUMNS)}; name one of {there} by lists.uri"
            )
        self.uri = uri
        self.start = find("start", policy.start, (_RANGE_COLUMNS["start"],))
        self.end = find("end", policy.end, (_RANGE_COLUMNS["end"],))
        for name in policy.carry:
            find("carry", name, ())

    def read(self, row: Mapping[str, Any]) -> Line:
        carried = {name: row[name] for name in self.carry if row.get(name) is not None}
        try:
            text = canonical_json(carried).decode() if carried else ""
        except (TypeError, ValueError):
            text = canonical_json({name: str(value) for name, value in carried.items()}).decode()
        return Line(str(row.get(self.uri) or "").strip(), _seconds(row, self.start), _seconds(row, self.end), text)


def _seconds(row: Mapping[str, Any], column: str | None) -> float | None:
    value = row.get(column) if column else None
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    # What is no time makes its item fail, not the job: no video has a time before its first frame.
    return seconds if math.isfinite(seconds) else -1.0
