"""Reading of ``export.json`` with the checks that depend on the target."""

from pathlib import Path

import numpy as np

from vidvq.errors import UsageError
from vidvq.export.samples import with_samples
from vidvq.export.target import Target
from vidvq.export.targets import TARGETS
from vidvq.formats import export_records
from vidvq.formats.export_records import ExportHeader


def read_header(folder: Path) -> ExportHeader:
    """Read ``export.json``.

    Raises:
        UsageError: the file is damaged, or of another format.
    """
    header = export_records.read_header(folder)
    target, fault = TARGETS.get(header.target), ""
    if target is None:
        fault = f"target={header.target} is not one of {', '.join(TARGETS)}"
    elif header.dtype != np.dtype(target.dtype(header.vocabulary)).name:
        fault = f"dtype={header.dtype} does not match {header.vocabulary} ids for {header.target}"
    if fault:
        raise UsageError(f"{folder / 'export.json'} is damaged: {fault}; export again")
    return header


def target_of(header: ExportHeader) -> Target:
    """The format of the parts of an export."""
    target = TARGETS[header.target]
    return with_samples(target) if header.samples else target
