"""Metadata of the clips beside their ids, so that grids can be restored: one JSON line per clip."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vidvq.export.target import Files, Target, TokenSequence
from vidvq.formats.export_records import SAMPLES, encode_sample


def with_samples(target: Target) -> Target:
    """Return the target with a file of metadata as the last one of each part."""

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
