"""Read throughput of token shards and all export formats (ids per second), relative to one npy file per clip.

    python benchmarks/export.py TOKENS [--clips 2000] [--rounds 7]

TOKENS is a directory of token shards. Its clips are repeated up to --clips and written in every format to a temporary
folder. Each round reads each format once in one process, clip by clip, to int64 ids as a training batch needs them.
Files are in the page cache, so parsing is measured, not disks. The table shows medians over rounds. megatron, litdata
and MDS are read by their libraries if these are installed (`make bench-export` installs them).
"""

import argparse
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from itertools import cycle, islice, pairwise
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vidvq.export import TARGETS, ExportConfig, Layout, grid_to_sequence
from vidvq.export.target import TokenSequence, write_part
from vidvq.formats.export_records import Part, PartFile
from vidvq.formats.tar import TarWriter
from vidvq.formats.token_index import committed_shards
from vidvq.formats.token_shard import TokenInfo, read_tokenizer_card, read_tokens, token_files
from vidvq.storage import sha256_file

STEM = "tokens-000000"
Clip = tuple[str, np.ndarray, TokenInfo]


def main() -> None:
    """Write all formats, run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    layout = Layout(read_tokenizer_card(options.tokens), ExportConfig())
    found = [clip for shard in committed_shards(options.tokens) for clip in read_tokens(shard, layout.card)]
    clips = [(f"{index:06d}", *clip[1:]) for index, clip in enumerate(islice(cycle(found), options.clips))]
    with tempfile.TemporaryDirectory() as folder:
        forms = {**_shards(Path(folder), clips, layout), **_exports(Path(folder), clips, layout)}
        rates: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(options.rounds + 1):
            for name, read in forms.items():
                rates[name].append(_rate(read))
    print(
        f"{len(clips)} clips, {sum(codes.size for _, codes, _ in clips)} codes; millions of ids/s, and the ratio to npy"
    )
    for name, column in rates.items():
        # The first round warms up caches.
        ratio = statistics.median(
            rate / npy for rate, npy in zip(column[1:], rates["npy, a file per clip"][1:], strict=True)
        )
        print(f"{name:36s} {statistics.median(column[1:]) / 1e6:8.1f} {ratio:7.2f}")


def _rate(read: Callable[[], Iterator[Any]]) -> float:
    started, ids = monotonic(), 0
    for clip in read():
        ids += np.asarray(clip).astype(np.int64).size
    return ids / (monotonic() - started)


def _shards(folder: Path, clips: list[Clip], layout: Layout) -> dict[str, Callable[[], Iterator[Any]]]:
    """Write npy files and token shards; return a reader for each, by its name in the table."""
    (folder / "npy").mkdir()
    for key, codes, _ in clips:
        np.save(folder / "npy" / f"{key}.npy", codes)
    for name, pack in (("plain.tar", False), ("packed.tar", True)):
        with (folder / name).open("wb") as file:
            tar = TarWriter(file)
            for key, codes, info in clips:
                for extension, data in sorted(token_files(codes, info, layout.card, pack).items()):
                    tar.add(f"{key}.{extension}", data)
            tar.close()
    return {
        "npy, a file per clip": lambda: (np.load(folder / "npy" / f"{key}.npy") for key, _, _ in clips),
        "token shard": lambda: (codes for _, codes, _ in read_tokens(folder / "plain.tar", layout.card)),
        "token shard, pack=true": lambda: (codes for _, codes, _ in read_tokens(folder / "packed.tar", layout.card)),
    }


def _exports(folder: Path, clips: list[Clip], layout: Layout) -> dict[str, Callable[[], Iterator[Any]]]:
    """Write all exports; return a reader for each, by its name in the table."""
    forms: dict[str, Callable[[], Iterator[Any]]] = {}
    for name, target in TARGETS.items():
        out, dtype = folder / name, np.dtype(target.dtype(layout.vocabulary))
        sequences = (TokenSequence(key, grid_to_sequence(codes, layout), info) for key, codes, info in clips)
        paths = write_part(target, out, STEM, sequences, len(clips), layout.vocabulary)
        files = tuple(PartFile(path.name, path.stat().st_size, sha256_file(path)) for path in paths)
        ids = sum(len(sequence) for sequence in target.read(paths, dtype))
        for file, data in target.index_files([Part(STEM, "", len(clips), ids, files)], dtype).items():
            (out / file).parent.mkdir(exist_ok=True)
            (out / file).write_bytes(data)
        library = LIBRARIES.get(name)
        if library and find_spec(library[0]):
            forms[f"{name}, by {library[0]}"] = library[1](out)
        else:
            forms[f"{name}, by vidvq"] = lambda read=target.read, paths=paths, dtype=dtype: read(paths, dtype)
    return forms


def _megatron(out: Path) -> Callable[[], Iterator[Any]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset  # pyright: ignore[reportMissingImports]

    data = IndexedDataset(str(out / STEM))
    return lambda: (data[index] for index in range(len(data)))


def _litdata(out: Path) -> Callable[[], Iterator[Any]]:
    from litdata import StreamingDataset, TokensLoader  # pyright: ignore[reportMissingImports]

    return lambda: iter(StreamingDataset(str(out), item_loader=TokensLoader(block_size=2048)))


def _mds(out: Path) -> Callable[[], Iterator[Any]]:
    # Stubs for torchvision, which only the unused vision datasets of the library need.
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
        for attribute in ("VisionDataset", "CIFAR10", "to_tensor"):
            setattr(sys.modules[name], attribute, type(attribute, (), {}))
    from streaming import StreamingDataset  # pyright: ignore[reportMissingImports]

    data = StreamingDataset(local=str(out), batch_size=1)
    return lambda: (data[index]["tokens"] for index in range(len(data)))


def _parquet(out: Path) -> Callable[[], Iterator[Any]]:
    def rows() -> Iterator[Any]:
        for batch in pq.ParquetFile(out / f"{STEM}.parquet").iter_batches(columns=["tokens"]):
            for row in batch.column("tokens"):
                yield row.values.to_numpy()

    return rows


def _bin(out: Path) -> Callable[[], Iterator[Any]]:
    def slices() -> Iterator[Any]:
        ids, starts = np.memmap(out / f"{STEM}.bin", np.uint16, "r"), np.load(out / f"{STEM}.index.npy").tolist()
        for start, end in pairwise(starts):
            yield ids[start:end]

    return slices


LIBRARIES = {
    "megatron": ("megatron", _megatron),
    "litdata": ("litdata", _litdata),
    "mds": ("streaming", _mds),
    "parquet": ("pyarrow", _parquet),
    "bin": ("numpy", _bin),
}

if __name__ == "__main__":
    main()
