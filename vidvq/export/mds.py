"""MDS shards of mosaicml-streaming: one sample per clip, with key, ids, grid, frame count, frame rate and source."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidvq.export.offsets import read_offsets, write_samples
from vidvq.export.target import Files, Target, TokenSequence
from vidvq.formats.export_records import Part
from vidvq.storage import pretty_json

_SHAPE_DTYPES = (np.uint8, np.uint16, np.uint32, np.uint64)


def _columns(dtype: np.dtype) -> dict[str, tuple[str, int | None]]:
    """Encoding and size (bytes; None for any) of each column."""
    return {
        "fps": ("float64", 8),
        "grid": ("ndarray:int32:3", 12),
        "key": ("str", None),
        "num_frames": ("int", 8),
        "source": ("str", None),
        "tokens": (f"ndarray:{dtype.name}", None),
    }


def _config(dtype: np.dtype) -> dict[str, Any]:
    columns = _columns(dtype)
    return {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": ["sha256"],
        "size_limit": None,
        "column_names": list(columns),
        "column_encodings": [encoding for encoding, _ in columns.values()],
        "column_sizes": [size for _, size in columns.values()],
    }


def _sample(sequence: TokenSequence, dtype: np.dtype) -> bytes:
    clip, length = sequence.info, len(sequence.ids)
    # Arrays of variable shape start with the number of axes and the integer width of their lengths, then the lengths.
    width = next(index for index, kind in enumerate(_SHAPE_DTYPES) if length <= np.iinfo(kind).max)
    shape = bytes([1 << 2 | width]) + np.array([length], dtype=_SHAPE_DTYPES[width]).tobytes()
    columns = [
        np.float64(clip.fps).tobytes(),
        np.array(clip.grid, dtype=np.int32).tobytes(),
        sequence.key.encode(),
        np.int64(clip.num_frames).tobytes(),
        clip.source.encode(),
        shape + sequence.ids.astype(dtype).tobytes(),
    ]
    ragged = [len(data) for data, (_, size) in zip(columns, _columns(dtype).values(), strict=True) if size is None]
    return np.array(ragged, dtype=np.uint32).tobytes() + b"".join(columns)


def _write(files: Files, sequences: Iterator[TokenSequence], count: int, dtype: np.dtype) -> None:
    header = json.dumps(_config(dtype), sort_keys=True).encode()
    write_samples(files[0], count, (_sample(sequence, dtype) for sequence in sequences), header)


def _read(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    offsets = read_offsets(paths[0])
    with paths[0].open("rb") as file:
        file.seek(int(offsets[0]))
        for size in np.diff(offsets).tolist():
            sample = file.read(size)
            tokens = sample[size - int.from_bytes(sample[8:12], "little") :]
            yield np.frombuffer(tokens, dtype=dtype, offset=1 + (1 << tokens[0] % 4))


def _index_files(parts: list[Part], dtype: np.dtype) -> dict[str, bytes]:
    shards: list[dict[str, Any]] = []
    for part in parts:
        file = part.files[0]
        raw = {"basename": file.name, "bytes": file.bytes, "hashes": {"sha256": file.sha256}}
        shards.append(_config(dtype) | {"samples": part.clips, "raw_data": raw, "zip_data": None})
    return {"index.json": pretty_json({"version": 2, "shards": shards})}


MDS = Target((".mds",), _write, _read, _index_files)
