"""The sources of a plan, and what was found in each: a part at a time, kept as it goes, so that planning goes on."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vidvq.corpus.inputs import SOURCE_COLUMNS, Fingerprint, Source
from vidvq.log import progress
from vidvq.storage import canonical_json, make_folder, remove_attempts, sha256_bytes, write_atomic

_SCHEMA = pa.schema(SOURCE_COLUMNS)
_FOLDER = "planning"
_SOURCES_PER_PART = 1024


class Listing:
    """The sources of a plan in their order, packed: a corpus of millions fits into memory.

    Attributes:
        parts: rows of :class:`Source`, so many to a part.
        inputs: what the plan keeps of them.
        digest: hex, over the sources in their order.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self.parts: list[pa.RecordBatch] = []
        self.inputs = Fingerprint()
        order = hashlib.sha256()
        sources = iter(sources)
        with progress("list", None, "videos") as bar:
            while part := list(islice(sources, _SOURCES_PER_PART)):
                rows = [asdict(source) for source in part]
                order.update(canonical_json(rows))
                self.parts.append(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
                for source in part:
                    self.inputs.add(source)
                bar.advance(len(part))
        self.digest = order.hexdigest()

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)


def look_into(
    out: Path,
    listing: Listing,
    made_from: dict[str, Any],
    schema: pa.Schema,
    look: Callable[[Iterator[Source]], Iterator[list[dict[str, Any]]]],
    order: Callable[[int], Iterable[int]] = range,
) -> Iterator[pa.Table]:
    """Yield the rows of all sources, a part at a time, in order; parts made by an earlier run are read, not made again.

    Args:
        out: the output directory, where the parts are kept until :func:`remove_parts`.
        listing: what to look at.
        made_from: what the rows depend on beside the listing.
        schema: of the rows.
        look: yields the rows of each source given, in order.
        order: of so many parts, in which order this driver comes to them.

    Raises:
        FileNotFoundError: another driver's plan stands, and the parts are swept away.
    """
    folder = out / _FOLDER
    stem = sha256_bytes(canonical_json([made_from, listing.digest]))[:16]
    make_folder(folder)
    with progress("plan", len(listing), "videos") as bar:
        paths = [folder / f"{stem}-{number:06d}.parquet" for number in range(len(listing.parts))]
        for number in order(len(paths)):
            part = listing.parts[number]
            if paths[number].is_file():
                bar.advance(len(part))
                continue
            rows: list[dict[str, Any]] = []
            for found in look(Source(**row) for row in part.to_pylist()):
                rows.extend(found)
                bar.advance()
            table = pa.Table.from_pylist(rows, schema=schema)
            if len(paths) == 1:
                yield table
                return
            buffer = pa.BufferOutputStream()
            pq.write_table(table, buffer, compression="zstd")
            write_atomic(paths[number], buffer.getvalue().to_pybytes())
    for path in paths:
        with path.open("rb") as file:
            yield pq.read_table(file)


def remove_parts(out: Path) -> None:
    """Delete what planning kept, once the plan stands."""
    folder = out / _FOLDER
    if not folder.exists():
        return
    # Another driver may sweep too, or still plan; it sweeps after itself.
    with suppress(FileNotFoundError):
        remove_attempts(folder)
        for part in list(folder.iterdir()):
            part.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
