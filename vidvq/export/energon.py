"""WebDataset shards with the metadata that ``energon prepare`` would write, for energon's ``CrudeWebdataset``."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vidvq.export.target import Files, Target, TokenSequence
from vidvq.formats.export_records import Part
from vidvq.formats.npy import read_npy
from vidvq.formats.tar import TarWriter, read_samples
from vidvq.storage import canonical_json, pretty_json

_META = ".nv-meta"
_MEDIA = "tokens.npy"


def _write(files: Files, sequences: Iterator[TokenSequence], count: int, dtype: np.dtype) -> None:
    # The index holds the offset of the first header of each sample, and the end of the last sample.
    data, index = files
    tar = TarWriter(data)
    for sequence in sequences:
        index.write(struct.pack("<Q", data.tell()))
        clip, buffer = sequence.info, io.BytesIO()
        about = {"grid": clip.grid, "num_frames": clip.num_frames, "fps": clip.fps, "source": clip.source}
        np.save(buffer, sequence.ids.astype(dtype), allow_pickle=False)
        tar.add(f"{sequence.key}.json", canonical_json(about))
        tar.add(f"{sequence.key}.{_MEDIA}", buffer.getvalue())
    index.write(struct.pack("<Q", data.tell()))
    tar.close()


def _read(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    for _, files in read_samples(paths[0]):
        yield read_npy(files[_MEDIA])


def _index_files(parts: list[Part], dtype: np.dtype) -> dict[str, bytes]:
    counts = {part.files[0].name: part.clips for part in parts}
    split = {"split_parts": {"train": list(counts)}, "exclude": []}
    crude = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    # Energon reads the last two as YAML, of which JSON is a subset.
    return {
        f"{_META}/.info.json": pretty_json({"energon_version": None, "shard_counts": counts}),
        f"{_META}/split.yaml": pretty_json(split),
        f"{_META}/dataset.yaml": pretty_json(crude),
    }


ENERGON = Target((".tar", ".tar.idx"), _write, _read, _index_files)
