"""Exports have exactly the ids of the token shards, and the same bytes after an interruption."""

import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vidvq.data import TokenLoader
from vidvq.export import ExportConfig, Layout, job, sequence_to_grid
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens
from vidvq.storage import add_digest

TARGETS = ["megatron", "bin", "parquet", "litdata", "mds", "energon"]


def grids(tokens: Path) -> list[np.ndarray]:
    card = read_tokenizer_card(tokens)
    return [codes for shard in sorted(tokens.glob("*.tar")) for _, codes, _ in read_tokens(shard, card)]


def read_megatron(folder: Path) -> list[np.ndarray]:
    """Read megatron-core's published layout, independently of the writer."""
    clips = []
    for path in sorted(folder.glob("*.idx")):
        with path.open("rb") as file:
            assert file.read(9) == b"MMIDIDX\x00\x00"
            assert struct.unpack("<Q", file.read(8)) == (1,)
            dtype = {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}[struct.unpack("<B", file.read(1))[0]]
            sequences, documents = struct.unpack("<Q", file.read(8))[0], struct.unpack("<Q", file.read(8))[0]
            lengths = np.frombuffer(file.read(4 * sequences), np.int32)
            pointers = np.frombuffer(file.read(8 * sequences), np.int64)
            assert np.frombuffer(file.read(8 * documents), np.int64).tolist() == list(range(sequences + 1))
            assert not file.read()
        data = path.with_suffix(".bin").read_bytes()
        assert len(data) == lengths.sum() * dtype.itemsize
        clips += [np.frombuffer(data, dtype, n, at) for n, at in zip(lengths, pointers, strict=True)]
    return clips


def read_bin(folder: Path) -> list[np.ndarray]:
    clips = []
    for path in sorted(folder.glob("*.bin")):
        ids, starts = np.memmap(path, dtype=np.uint16, mode="r"), np.load(path.with_suffix(".index.npy"))
        assert starts[-1] == len(ids)
        clips += [ids[start:end] for start, end in pairwise(starts)]
    return clips


def read_parquet(folder: Path) -> list[np.ndarray]:
    return [
        np.array(ids) for path in sorted(folder.glob("*.parquet")) for ids in pq.read_table(path)["tokens"].to_pylist()
    ]


READERS = {"megatron": read_megatron, "bin": read_bin, "parquet": read_parquet}


@pytest.mark.parametrize("order", ["raster", "temporal"])
@pytest.mark.parametrize("target", READERS)
def test_every_id_is_read_back(tmp_path, tokens_dir, vidvq, target, order):
    out = tmp_path / "out"
    assert vidvq("export", tokens_dir, "--to", target, "--out", out, "--check", f"order={order}").code == 0
    layout = Layout(read_tokenizer_card(tokens_dir), ExportConfig(order))
    expected, found = grids(tokens_dir), READERS[target](out)
    assert len(found) == len(expected) > 4
    for ids, codes in zip(found, expected, strict=True):
        assert (sequence_to_grid(ids, codes.shape, layout) == codes).all()
    header = json.loads((out / "export.json").read_text())
    assert header["order"] == order and header["specials"] == layout.specials
    assert vidvq("verify", out).code == 0


@pytest.mark.parametrize("target", TARGETS)
def test_an_interrupted_export_resumes_to_the_same_bytes(tmp_path, tokens_dir, vidvq, snapshot, monkeypatch, target):
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = ("export", tokens_dir, "--to", target, "--out")
    assert vidvq(*command, whole).code == 0
    kept, calls = job.create_once, []

    def dies(path, data):
        calls.append(path)
        if len(calls) == 3:  # after export.json and the record of the first part
            raise OSError("killed")
        return kept(path, data)

    monkeypatch.setattr(job, "create_once", dies)
    assert vidvq(*command, out).code == 1
    monkeypatch.undo()
    assert vidvq("verify", out).code == 1
    assert vidvq(*command, out).code == 0
    assert snapshot(out) == snapshot(whole)


@pytest.mark.parametrize("target", ["megatron", "mds"])
def test_an_export_that_is_overtaken_by_another_ends_well(tmp_path, tokens_dir, vidvq, snapshot, monkeypatch, target):
    export = ("export", tokens_dir, "--to", target, "--out")
    assert vidvq(*export, tmp_path / "whole").code == 0
    write, overtaken = job.grid_to_sequence, []

    def overtake(*arguments):
        monkeypatch.setattr(job, "grid_to_sequence", write)
        overtaken.append(vidvq(*export, tmp_path / "out").code)
        return write(*arguments)

    monkeypatch.setattr(job, "grid_to_sequence", overtake)
    ran = vidvq(*export, tmp_path / "out")
    assert ran.code == 0 and overtaken == [0], ran.err
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_an_unknown_target_is_a_one_line_error_with_the_known_ones(tmp_path, tokens_dir, vidvq):
    ran = vidvq("export", tokens_dir, "--to", "csv", "--out", tmp_path / "out")
    assert ran.code == 2 and all(target in ran.error for target in TARGETS)
    assert not (tmp_path / "out").exists()


def test_inspect_describes_an_export(tmp_path, tokens_dir, vidvq):
    assert vidvq("export", tokens_dir, "--to", "mds", "--out", tmp_path / "out").code == 0
    ran = vidvq("inspect", tmp_path / "out")
    assert ran.code == 0 and "an export to mds, 4 of 4 parts finished" in ran.out and "clip_start 96" in ran.out


def test_unfinished_tokens_are_refused(tmp_path, tokens_dir, copy_of, vidvq):
    copy = copy_of(tokens_dir)
    (copy / "commits/tokens-000001.tar.json").unlink()
    ran = vidvq("export", copy, "--to", "bin", "--out", tmp_path / "out")
    assert ran.code == 2 and "tokens-000001.tar is not committed" in ran.error
    assert not (tmp_path / "out").exists()


def test_another_order_for_the_same_folder_is_refused(tmp_path, tokens_dir, vidvq):
    command = ("export", tokens_dir, "--to", "bin", "--out", tmp_path / "out")
    assert vidvq(*command).code == 0
    ran = vidvq(*command, "order=temporal")
    assert ran.code == 2 and 'order was "raster", now "temporal"' in ran.error


@pytest.mark.parametrize("target", TARGETS)
def test_damage_is_found(tmp_path, tokens_dir, vidvq, target):
    out = tmp_path / "out"
    assert vidvq("export", tokens_dir, "--to", target, "--out", out, "--check").code == 0
    assert vidvq("verify", out).code == 0
    path = next(path for path in sorted(out.iterdir()) if path.suffix in {".bin", ".parquet", ".mds", ".tar"})
    whole = path.read_bytes()
    # A byte of an id.
    at = {"energon": whole.find(b"NUMPY") + 140, "mds": len(whole) - 2}.get(target, len(whole) // 2 & ~1)
    for damaged in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[: len(whole) // 2], whole[:3], b""):
        path.write_bytes(damaged)
        ran = vidvq("verify", out)
        assert ran.code == 1 and path.name in ran.out
        ran = vidvq("export", tokens_dir, "--to", target, "--out", out, "--check")
        assert ran.code == 2 and path.name in ran.error and "run the same command again" in ran.error
    path.unlink()
    for check in (["--check"], []):
        ran = vidvq("export", tokens_dir, "--to", target, "--out", out, *check)
        assert ran.code == 2 and f"{path.name}: is missing" in ran.error
    # The remedy in all of these messages.
    (out / f"commits/{path.name.partition('.')[0]}.json").unlink()
    assert vidvq("export", tokens_dir, "--to", target, "--out", out, "--check").code == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("target", "name"), [("litdata", "index.json"), ("mds", "index.json"), ("energon", ".nv-meta/split.yaml")]
)
def test_index_files_are_verified_and_restored(tmp_path, tokens_dir, vidvq, snapshot, target, name):
    out = tmp_path / "out"
    command = ("export", tokens_dir, "--to", target, "--out", out)
    assert vidvq(*command).code == 0
    whole = snapshot(out)
    for break_it in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-3])):
        break_it(out / name)
        ran = vidvq("verify", out)
        assert ran.code == 1 and f"{name}: is missing or differs" in ran.out
        assert vidvq(*command).code == 0 and snapshot(out) == whole


def test_records_and_content_must_agree(tmp_path, tokens_dir, vidvq):
    out = tmp_path / "out"
    assert vidvq("export", tokens_dir, "--to", "bin", "--out", out).code == 0
    record, header = out / "commits/tokens-000000.json", out / "export.json"
    kept = record.read_text()
    part = json.loads(kept)
    record.write_text(json.dumps(resealed(part | {"ids": part["ids"] + 1})))
    ran = vidvq("verify", out)
    assert ran.code == 1 and f"its record has {part['clips']} and {part['ids'] + 1}" in ran.out
    record.write_text(kept)
    fields = json.loads(header.read_text())
    forged = {
        "vocabulary": 50,
        "target": "csv",
        "dtype": "int64",
        "order": "temporal",
        "specials": {"clip_start": 0, "clip_end": 1},
        "codebooks": [fields["codebooks"][0], fields["codebooks"][1] | {"offset": 0}],
        "parts": [*fields["parts"], fields["parts"][0]],
    }
    for name, value in forged.items():
        header.write_text(json.dumps(resealed(fields | {name: value})))
        assert "is damaged" in vidvq("verify", out).error, name
    header.write_text(json.dumps(resealed(fields | {"tokens_sha256": "0" * 64})))
    assert "tokens_sha256" in vidvq("verify", out).out
    header.write_text(json.dumps(fields | {"token_fingerprint": "0" * 64}))
    assert "was changed after it was written" in vidvq("verify", out).error


def resealed(fields: dict) -> dict:
    """With a digest that fits, as a forger would write it."""
    return add_digest({name: value for name, value in fields.items() if name != "digest"})


@pytest.mark.parametrize("target", ["litdata", "mds"])
def test_a_part_too_large_for_its_format_is_refused(tmp_path, tokens_dir, vidvq, monkeypatch, target):
    monkeypatch.setattr("vidvq.export.offsets._MAX_BYTES", 500)
    ran = vidvq("export", tokens_dir, "--to", target, "--out", tmp_path / "out")
    assert ran.code == 2 and "more than 500 bytes" in ran.error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json"]


@pytest.mark.parametrize("settings", [("specials=group",), ("order=temporal", "specials=none")])
def test_a_megatron_export_with_samples_trains_like_its_token_shards(tmp_path, tokens_dir, vidvq, settings):
    plain, out = tmp_path / "plain", tmp_path / "out"
    command = ("export", tokens_dir, "--to", "megatron", *settings, "--check", "--out")
    assert vidvq(*command, plain).code == 0 and vidvq(*command, out, "samples=true").code == 0
    added = {path.name for path in out.iterdir()} - {path.name for path in plain.iterdir()}
    assert added == {"tokenizer.json", *(f"{path.stem}.samples.jsonl" for path in out.glob("*.bin"))}
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in plain.glob("*.bin"))
    assert vidvq("verify", out).code == 0
    shards, export = index_tokens(tokens_dir), index_tokens(out)
    card = read_tokenizer_card(out)
    assert card == read_tokenizer_card(tokens_dir)
    for one, other in zip(shards, export, strict=True):
        (codes, info), (restored, same) = one.read(card), other.read(card)
        assert one.key == other.key and info == same == other.read_info()
        assert codes.dtype == restored.dtype and np.array_equal(codes, restored)
    loaders = [TokenLoader(str(folder), batch_size=2, latents=2, seed=3) for folder in (tokens_dir, out)]
    for _, (one, other) in zip(range(6), zip(*loaders, strict=True), strict=False):
        assert one.keys == other.keys and one.codes.equal(other.codes) and one.latents.equal(other.latents)


def test_an_export_that_cannot_be_trained_on_is_one_line(tmp_path, tokens_dir, vidvq):
    out, plain = tmp_path / "out", tmp_path / "plain"
    export = ("export", tokens_dir, "--out")
    wrong = vidvq(*export, out, "--to", "bin", "samples=true")
    assert wrong.code == 2 and "samples=true is for --to megatron" in wrong.error and not out.exists()
    assert vidvq(*export, plain, "--to", "megatron", "order=temporal").code == 0
    wrong = vidvq("generate", "train", plain, "--out", tmp_path / "run")
    assert wrong.code == 2 and "--to megatron order=temporal specials=clip samples=true" in wrong.error
    assert vidvq(*export, out, "--to", "megatron", "samples=true").code == 0
    lines = next(out.glob("*.samples.jsonl"))
    whole = lines.read_bytes()
    lines.write_bytes(whole[:-1])
    assert "has another size than its record" in vidvq("generate", "train", out, "--out", tmp_path / "run").error
    assert vidvq("verify", out).code == 1
    lines.write_bytes(whole)
    card = out / "tokenizer.json"
    text = card.read_text()
    card.write_text(text.replace(json.loads(text)["token_fingerprint"], "0" * 64))
    assert "of another tokenizer" in vidvq("verify", out).out
    assert "of different tokenizers" in vidvq("generate", "train", out, "--out", tmp_path / "run").error
    card.write_text(text)
    record = next((out / "commits").glob("*.json"))
    record.unlink()
    wrong = vidvq("generate", "train", out, "--out", tmp_path / "run")
    assert wrong.code == 2 and "finish vidvq export first" in wrong.error
