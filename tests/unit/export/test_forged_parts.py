"""Parts of exports: their limits, and one-line errors for those that differ from their records."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidvq.data import TokenLoader
from vidvq.errors import UsageError
from vidvq.export import ExportConfig, run_export, verify_export
from vidvq.export.offsets import write_samples
from vidvq.formats.tar import TarWriter, parse_header
from vidvq.storage import add_digest

STEM = "tokens-000000"


def forge(out: Path, suffix: str, data: bytes) -> None:
    """Replace a file of a part, with a record that fits."""
    path = out / f"commits/{STEM}.json"
    record = json.loads(path.read_text())
    (file,) = (file for file in record["files"] if file["name"] == STEM + suffix)
    file["bytes"], file["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (out / file["name"]).write_bytes(data)
    path.write_text(json.dumps(add_digest({name: value for name, value in record.items() if name != "digest"})))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tar(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    writer.add("a.tokens.npy", npy(array))
    writer.close()
    return buffer.getvalue()


def parquet(column: pa.Array, name: str = "tokens") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: column}), buffer)
    return buffer.getvalue()


IDS = pa.list_(pa.uint16())


@pytest.mark.parametrize(
    ("target", "suffix", "data", "said"),
    [
        ("bin", ".index.npy", npy(np.array([0, 1, -(1 << 63)])), "its index does not match its"),
        ("bin", ".index.npy", npy(np.array([0, 1])), "its index does not match its"),
        ("parquet", ".parquet", parquet(pa.array([None, [1]], IDS)), "has 2 clips and 1 ids"),
        ("parquet", ".parquet", parquet(pa.array([[1, None]], IDS)), "is not readable"),
        ("parquet", ".parquet", parquet(pa.array([[1.5]])), "clip 0 is not a list of ids of type uint16"),
        ("parquet", ".parquet", parquet(pa.array([1])), "its tokens are int64, not lists"),
        ("parquet", ".parquet", parquet(pa.array([[1]], IDS), "ids"), "is not readable"),
        ("energon", ".tar", tar(np.array(3)), "clip 0 is not a list of ids of type uint16"),
        ("energon", ".tar", tar(np.array([np.inf])), "clip 0 is not a list of ids of type uint16"),
        ("energon", ".tar", tar(np.array(["a"])), "clip 0 is not a list of ids of type uint16"),
        ("energon", ".tar", tar(np.zeros((2, 2), np.uint16)), "clip 0 is not a list of ids of type uint16"),
        ("mds", ".mds", b"", "its offsets do not match its 0 bytes"),
        ("mds", ".mds", np.array([1, 12, 12], "<u4").tobytes(), "is not readable"),
    ],
)
def test_a_forged_part_is_described_in_one_line(tmp_path, tokens_dir, target, suffix, data, said):
    run_export(tokens_dir, target, tmp_path / "out", ExportConfig())
    forge(tmp_path / "out", suffix, data)
    problem = next(line for line in verify_export(tmp_path / "out")[0] if line.startswith(STEM))
    assert said in problem and "\n" not in problem


def change_grid(grid: list[int]) -> Callable[[bytes], bytes]:
    def change(lines: bytes) -> bytes:
        first, *rest = lines.splitlines()
        fields = json.loads(first)
        fields["sample"]["grid"] = grid
        return b"\n".join((json.dumps(fields).encode(), *rest)) + b"\n"

    return change


@pytest.mark.parametrize(
    ("suffix", "change", "said"),
    [
        (".idx", lambda whole: whole[:30], "is not the index of 4 clips"),
        (".idx", lambda whole: whole[:34] + b"\xff" * 4 + whole[38:], "is a sequence of 62 ids; got 0"),
        (".bin", lambda whole: whole[:-1], "buffer size must be a multiple"),
        (".samples.jsonl", change_grid([0, 4, 5]), "grid.0=0"),
        (".samples.jsonl", change_grid([1 << 70, 4, 5]), "grid.0="),
    ],
)
def test_a_forged_part_of_a_training_set_is_one_line(tmp_path, tokens_dir, suffix, change, said):
    out = tmp_path / "out"
    run_export(tokens_dir, "megatron", out, ExportConfig(samples=True))
    forge(out, suffix, change((out / (STEM + suffix)).read_bytes()))
    with pytest.raises(UsageError) as raised:
        loader = TokenLoader(out, 1)
        for location in loader.dataset.index.locations:
            location.read(loader.card)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_an_id_just_outside_the_vocabulary_is_found(tmp_path, tokens_dir):
    out = tmp_path / "out"
    run_export(tokens_dir, "bin", out, ExportConfig())
    header = json.loads((out / "export.json").read_text())
    ids = np.fromfile(out / f"{STEM}.bin", header["dtype"])
    ids[1] = header["vocabulary"]
    forge(out, ".bin", ids.tobytes())
    (problem,) = verify_export(out)[0]
    assert f"has id {ids[1]}, outside the vocabulary of {ids[1]} ids" in problem


def test_a_token_shard_with_fewer_clips_than_its_record_is_not_exported(tmp_path, tokens_dir, copy_of):
    tokens = copy_of(tokens_dir)
    path = tokens / f"commits/{STEM}.tar.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "digest"} | {"ok": 5}))
    with pytest.raises(UsageError, match="has 4 clips, its record has 5"):
        run_export(tokens, "bin", tmp_path / "out", ExportConfig())
    assert not (tmp_path / f"out/commits/{STEM}.json").exists()


def test_the_index_of_energon_has_the_first_header_of_each_sample_and_the_end(tmp_path, tokens_dir):
    run_export(tokens_dir, "energon", tmp_path / "out", ExportConfig())
    offsets = np.fromfile(tmp_path / f"out/{STEM}.tar.idx", "<u8").tolist()
    data = (tmp_path / f"out/{STEM}.tar").read_bytes()
    assert len(offsets) == 5 and offsets[0] == 0
    assert all(parse_header(data[start : start + 512])[0].endswith(".json") for start in offsets[:-1])
    assert not any(data[offsets[-1] :]) and any(data[offsets[-1] - 512 : offsets[-1]])


def test_a_file_of_samples_is_at_most_as_large_as_its_offsets_can_say(monkeypatch):
    monkeypatch.setattr("vidvq.export.offsets._MAX_BYTES", 20)
    write_samples(io.BytesIO(), 1, [bytes(7)])
    with pytest.raises(UsageError, match="more than 20 bytes"):
        write_samples(io.BytesIO(), 1, [bytes(8)])
