"""litdata chunks for its ``TokensLoader``: one stream of ids, read in blocks of any size."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vidvq.export.flat import read_arrays
from vidvq.export.offsets import read_offsets, write_samples
from vidvq.export.target import Files, Target, TokenSequence
from vidvq.formats.export_records import Part
from vidvq.storage import pretty_json, sha256_bytes

# Indices of torch dtypes in litdata's table.
_DTYPES = {np.dtype(np.uint16): 20, np.dtype(np.int32): 15}


def _write(files: Files, sequences: Iterator[TokenSequence], count: int, dtype: np.dtype) -> None:
    write_samples(files[0], count, (sequence.ids.astype(dtype).tobytes() for sequence in sequences))


def _read(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    offsets = read_offsets(paths[0])
    yield from read_arrays(paths[0], np.diff(offsets) // dtype.itemsize, dtype, start=int(offsets[0]))


def _index_files(parts: list[Part], dtype: np.dtype) -> dict[str, bytes]:
    files = [part.files[0] for part in parts]
    chunks = [
        {"chunk_bytes": file.bytes, "chunk_size": part.clips, "dim": part.ids, "filename": file.name}
        for file, part in zip(files, parts, strict=True)
    ]
    config = {
        "chunk_bytes": max(file.bytes for file in files),
        "chunk_size": None,
        "compression": None,
        "compression_batch_size": None,
        "compression_level": None,
        "data_format": [f"no_header_tensor:{_DTYPES[dtype]}"],
        "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
        "encryption": None,
        "ipc_compression": None,
        "item_loader": "TokensLoader",
        "types": "tensor",
    }
    # litdata invalidates its cache when this value changes.
    content = sha256_bytes("\n".join(file.sha256 for file in files).encode())
    return {"index.json": pretty_json({"chunks": chunks, "config": config, "updated_at": content})}


LITDATA = Target((".bin",), _write, _read, _index_files, np.int32)
