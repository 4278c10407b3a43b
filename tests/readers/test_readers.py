"""Every export is read by the library it is for, and compared with the token shards, id by id."""

import json
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vidvq.export import ExportConfig, Layout, grid_to_sequence
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens

pytestmark = pytest.mark.readers


@pytest.fixture(scope="module")
def expected(tokens_dir) -> list[tuple[str, list[int], tuple[int, ...]]]:
    """Key, ids and grid of each clip."""
    layout = Layout(read_tokenizer_card(tokens_dir), ExportConfig())
    return [
        (key, grid_to_sequence(codes, layout).tolist(), codes.shape)
        for shard in sorted(tokens_dir.glob("*.tar"))
        for key, codes, _ in read_tokens(shard, layout.card)
    ]


@pytest.fixture
def exported(tmp_path, tokens_dir, vidvq) -> Callable[[str], Path]:
    """An export of the shared token shards, several parts."""

    def export(target: str) -> Path:
        out = tmp_path / target
        assert vidvq("export", tokens_dir, "--to", target, "--out", out).code == 0
        assert len(json.loads((out / "export.json").read_text())["parts"]) > 1
        return out

    return export


@pytest.fixture
def streaming(monkeypatch):
    """mosaicml-streaming; its vision data sets, of no use here, are all that wants torchvision."""
    names = {"datasets": ["VisionDataset", "CIFAR10"], "transforms": [], "transforms.functional": ["to_tensor"]}
    for module, objects in {"": [], **names}.items():
        stand_in = ModuleType(f"torchvision.{module}".rstrip("."))
        stand_in.__spec__ = ModuleSpec(stand_in.__name__, None)
        for name in objects:
            setattr(stand_in, name, type(name, (), {}))
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    import streaming

    return streaming


def test_megatron_core(exported, expected):
    with warnings.catch_warnings(action="ignore"):
        from megatron.core.datasets.indexed_dataset import IndexedDataset

    parts = [IndexedDataset(str(path.with_suffix(""))) for path in sorted(exported("megatron").glob("*.idx"))]
    assert [part[index].tolist() for part in parts for index in range(len(part))] == [ids for _, ids, _ in expected]
    assert [len(part.document_indices) - 1 for part in parts] == [len(part) for part in parts]


@pytest.mark.parametrize("block", [1, 7, 64])
def test_litdata_in_blocks(exported, expected, block):
    from litdata import StreamingDataset, TokensLoader

    out = exported("litdata")
    data = StreamingDataset(str(out), item_loader=TokensLoader(block_size=block))
    # Each part is one stream, and litdata drops what is left of it behind the last whole block.
    chunks = json.loads((out / "index.json").read_text())["chunks"]
    ids = np.concatenate([ids for _, ids, _ in expected])
    streams = np.split(ids, np.cumsum([chunk["dim"] for chunk in chunks])[:-1])
    blocks = [row for stream in streams for row in stream[: len(stream) // block * block].reshape(-1, block).tolist()]
    assert len(data) == len(blocks)
    assert [data[index].tolist() for index in range(len(data))] == blocks


def test_litdata_would_write_the_same_chunk(tmp_path, exported, expected):
    import torch
    from litdata import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    out = exported("litdata")
    chunk = json.loads((out / "index.json").read_text())["chunks"][0]
    writer = BinaryWriter(str(tmp_path / "theirs"), chunk_bytes=1 << 30, item_loader=TokensLoader())
    for index, (_, ids, _) in enumerate(expected[: chunk["chunk_size"]]):
        writer[index] = torch.tensor(ids).to(torch.uint16)
    writer.done()
    writer.merge()
    theirs = json.loads((tmp_path / "theirs/index.json").read_text())
    assert (tmp_path / "theirs/chunk-0-0.bin").read_bytes() == (out / chunk["filename"]).read_bytes()
    assert chunk | {"filename": ""} == theirs["chunks"][0] | {"filename": ""}
    ours = json.loads((out / "index.json").read_text())["config"]
    assert ours | {"chunk_bytes": 0} == theirs["config"] | {"chunk_bytes": 0}


def test_mds(streaming, exported, expected):
    data = streaming.StreamingDataset(local=str(exported("mds")), batch_size=1, validate_hash="sha256")
    rows = [data[index] for index in range(len(data))]
    assert [(row["key"], row["tokens"].tolist(), tuple(row["grid"])) for row in rows] == expected
    assert rows[0]["source"].endswith("carphone.mp4") and rows[0]["fps"] > 0 and rows[0]["num_frames"] == 9


def test_mds_would_be_written_the_same(tmp_path, streaming, exported):
    out = exported("mds")
    ours = json.loads((out / "index.json").read_text())["shards"][0]
    columns = dict(zip(ours["column_names"], ours["column_encodings"], strict=True))
    data = streaming.StreamingDataset(local=str(out), batch_size=1)
    folder = str(tmp_path / "theirs")
    with streaming.MDSWriter(out=folder, columns=columns, hashes=["sha256"], size_limit=None) as writer:
        for index in range(ours["samples"]):
            writer.write(data[index])
    theirs = json.loads((tmp_path / "theirs/index.json").read_text())["shards"][0]
    assert ours["raw_data"].pop("basename") == "tokens-000000.mds"
    theirs["raw_data"].pop("basename")
    assert ours == theirs


def test_energon(exported, expected):
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        TextSample,
        WorkerConfig,
        basic_sample_keys,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )

    @stateless
    def cook(sample: dict) -> TextSample:
        content = [sample["tokens.npy"].tolist(), sample["json"]["grid"]]
        return TextSample(**basic_sample_keys(sample), text=json.dumps(content))

    class Encoder(DefaultTaskEncoder):
        cookers = (Cooker(cook),)

    data = get_train_dataset(
        str(exported("energon")),
        task_encoder=Encoder(),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
    )
    found = []
    for batch in get_savable_loader(data):
        ids, grid = json.loads(batch.text[0])
        found.append((batch.__key__[0].rpartition("/")[2], ids, tuple(grid)))
    assert sorted(found) == sorted(expected)


def test_energon_would_prepare_the_same(exported):
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    out = exported("energon")
    names = sorted(path.name for path in out.glob("*.tar"))
    ours = {name: (out / f"{name}.idx").read_bytes() for name in names}
    counts = json.loads((out / ".nv-meta/.info.json").read_text())["shard_counts"]
    for name in names:
        (out / f"{name}.idx").unlink()
    WebdatasetPreparator.prepare_dataset(out, names, split_parts_ratio=[("train", 1.0)], workers=1)
    assert {name: (out / f"{name}.idx").read_bytes() for name in names} == ours
    assert json.loads((out / ".nv-meta/.info.json").read_text())["shard_counts"] == counts


def test_datasets_reads_parquet(tmp_path, exported, expected):
    from datasets import load_dataset

    files = str(exported("parquet") / "*.parquet")
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [(row["key"], row["tokens"], tuple(row["grid"])) for row in data] == expected
    assert data.features["tokens"].feature.dtype == "uint16"
