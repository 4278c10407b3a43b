"""All targets by name, and the target of a finished export."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vidvq.errors import UsageError
from vidvq.export.energon import ENERGON
from vidvq.export.flat import BIN, MEGATRON
from vidvq.export.litdata import LITDATA
from vidvq.export.mds import MDS
from vidvq.export.parquet import PARQUET
from vidvq.export.target import Files, Target, TokenSequence
from vidvq.formats import export_records
from vidvq.formats.export_records import SAMPLES, ExportHeader, encode_sample

TARGETS = {
    "megatron": MEGATRON,
    "bin": BIN,
    "parquet": PARQUET,
    "litdata": LITDATA,
    "mds": MDS,
    "energon": ENERGON,
}


def read_header(folder: Path) -> ExportHeader:
    """Read ``export.json``, with the checks that depend on the target.

    Raises:
        UsageError: the file is damaged, or of another format.
    """
    header = export_records.read_header(folder)
    target, fault = TARGETS.get(header.target), ""
    if target is None:
        fault = f"target={header.target} is not one of {', '.join(TARGETS)}"
    elif header.dtype != target.dtype(header.vocabulary).name:
        fault = f"dtype={header.dtype} does not match {header.vocabulary} ids for {header.target}"
    if fault:
        raise UsageError(f"{folder / 'export.json'} is damaged: {fault}; export again")
    return header


def target_of(header: ExportHeader) -> Target:
    """The format of the parts of an export."""
    target = TARGETS[header.target]
    return _with_samples(target) if header.samples else target


def _with_samples(target: Target) -> Target:
    """The target with the metadata of the clips, one JSON line each, as the last file of each part."""

    def write(files: Files, sequences: Iterator[TokenSequence], count: int, dtype: np.dtype) -> None:
        *data, lines = files

        def noted() -> Iterator[TokenSequence]:
            for sequence in sequences:
                lines.write(encode_sample(sequence.key, sequence.info))
                yield sequence

        target.write(data, noted(), count, dtype)

    return replace(
        target,
        suffixes=(*target.suffixes, SAMPLES),
        write=write,
        read=lambda paths, dtype: target.read(paths[:-1], dtype),
    )
