"""The sources of a plan, and their rows: probed in parts, each saved as it is finished, so that planning can resume."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidvq.corpus.inputs import Fingerprint
from vidvq.corpus.source import Source
from vidvq.formats.arrow import encode_table, holds_secrets, parse_table
from vidvq.formats.rows import RowCodec
from vidvq.jobs.stage import AnyVideoRow, VideoStage
from vidvq.log import progress
from vidvq.runtime import Pool, Runtime, WorkerDied, describe_death
from vidvq.storage import canonical_json, make_folder, read_file, remove_attempts, sha256_bytes, write_atomic

_FOLDER = "planning"
_SOURCES_PER_PART = 1024
_SOURCES = RowCodec(Source)
# A worker may be killed from outside; a video that kills it three times is to blame.
_PROBE_RETRIES = 2


class Listing:
    """The sources of a plan in order, in Arrow tables, so that millions fit into memory.

    Attributes:
        parts: tables of :class:`Source`, all of the same number of rows except the last.
        inputs: fingerprint of the inputs, as recorded in the plan.
        digest: SHA-256 of the sources in order (hex).
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self.parts: list[pa.Table] = []
        self.inputs = Fingerprint()
        order = hashlib.sha256()
        sources = iter(sources)
        with progress("list", None, "videos") as bar:
            while part := list(islice(sources, _SOURCES_PER_PART)):
                order.update(canonical_json([asdict(source) for source in part]))
                self.parts.append(_SOURCES.to_table(part))
                for source in part:
                    self.inputs.add(source)
                bar.advance(len(part))
        self.digest = order.hexdigest()

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def sources(self) -> Iterator[Source]:
        """Yield the sources in order."""
        for part in self.parts:
            yield from _SOURCES.from_table(part)


def probe_listing(
    stage: VideoStage[AnyVideoRow], listing: Listing, made_from: dict[str, Any], out: Path, runtime: Runtime
) -> Iterator[AnyVideoRow]:
    """Yield the rows of all sources in order; parts saved by an earlier run are not probed again.

    Args:
        made_from: everything that the rows depend on; parts with other values are ignored.
        out: output directory, which holds the parts until :func:`remove_parts`.

    Raises:
        FileNotFoundError: another driver has finished the plan and deleted the parts.
        JobStopped: credentials have expired.
    """
    pool = runtime.pool(-(-len(listing) // stage.probes_per_worker))
    codec = RowCodec(stage.row)
    folder = out / _FOLDER
    stem = sha256_bytes(canonical_json([made_from, listing.digest]))[:16]
    make_folder(folder)
    access = stage.access_watch()
    paths = [folder / f"{stem}-{number:06d}.parquet" for number in range(len(listing.parts))]
    with progress("plan", len(listing), "videos") as bar:
        for number in stage.config.runtime.order(len(paths)):
            part = listing.parts[number]
            if paths[number].is_file():
                bar.advance(len(part))
                continue
            rows: list[AnyVideoRow] = []
            for source, found in probe_sources(stage, _SOURCES.from_table(part), pool):
                access.record(source, {row.reason for row in found})
                rows += found
                bar.advance()
            access.check()
            if len(paths) == 1:
                yield from rows
                return
            table = codec.to_table(rows)
            write_atomic(paths[number], encode_table(table), holds_secrets(table))
    for path in paths:
        yield from codec.from_table(parse_table(read_file(path), path))


def probe_sources(
    stage: VideoStage[AnyVideoRow], sources: Iterable[Source], pool: Pool
) -> Iterator[tuple[Source, list[AnyVideoRow]]]:
    """Yield each source with its rows, in order."""
    probed = pool.map(stage.probe, sources, deadline_s=stage.deadline_s, retries=_PROBE_RETRIES)
    for source, rows in probed:
        if isinstance(rows, WorkerDied):
            rows = [stage.reject(source, *describe_death(rows, "decoder_died", "the prober crashed or hung on it"))]
        yield source, rows


def remove_parts(out: Path) -> None:
    """Delete the saved parts, once the plan is written."""
    folder = out / _FOLDER
    if not folder.exists():
        return
    # Another driver may delete them at the same time, or still be planning; it cleans up after itself.
    with suppress(FileNotFoundError):
        remove_attempts(folder)
        for part in list(folder.iterdir()):
            part.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
