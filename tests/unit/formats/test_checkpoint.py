"""Checkpoints: the fingerprints say what the weights are, and no half of one is ever seen."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import (
    find_checkpoint,
    fingerprint,
    is_checkpoint,
    list_steps,
    read_checkpoint,
    step_folder,
    write_checkpoint,
)
from vidvq.pretrained import load_tokenizer

MODEL: dict[str, Any] = {
    "encoder": {"channels": [8]},
    "quantizer": {"dim": 4},
    "decoder": {"channels": [8]},
    "patch": 4,
}
PREPROCESSING: dict[str, Any] = {"range": [-1, 1]}
TENSORS = {
    "encoder.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "quantizer.codebook": np.ones((4, 2), dtype=np.float32),
    "decoder.w": np.zeros(5, dtype=np.float32),
}


def write(folder: Path, step: int = 1, **kwargs: Any) -> Path:
    write_checkpoint(folder, MODEL, PREPROCESSING, TENSORS, step, **kwargs)
    return folder


def with_tensor(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    return TENSORS | {name: value}


def test_a_checkpoint_comes_back_as_it_went_in(tmp_path):
    checkpoint = read_checkpoint(write(tmp_path / "c", step=7))
    assert (checkpoint.config["model"], checkpoint.config["preprocessing"]) == (MODEL, PREPROCESSING)
    assert checkpoint.config["step"] == 7
    assert checkpoint.fingerprints == fingerprint(MODEL, PREPROCESSING, TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], tensor)


def test_tensors_may_have_any_strides(tmp_path):
    tensors = with_tensor("encoder.w", np.arange(6, dtype=np.float32).reshape(3, 2).T)
    tensors["decoder.s"] = np.array(2, dtype=np.float32)
    write_checkpoint(tmp_path / "c", MODEL, PREPROCESSING, tensors, 1)
    for name, tensor in read_checkpoint(tmp_path / "c").tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name])
        assert tensor.shape == tensors[name].shape


def test_two_writes_give_the_same_bytes(tmp_path, snapshot):
    assert snapshot(write(tmp_path / "a")) == snapshot(write(tmp_path / "b"))


BUMPED = TENSORS["encoder.w"] + np.float32(1e-7)


@pytest.mark.parametrize(
    ("model", "preprocessing", "tensors", "changes"),
    [
        (MODEL, PREPROCESSING, with_tensor("decoder.w", np.ones(5, np.float32)), "decoder"),
        (MODEL | {"decoder": {"channels": [9]}}, PREPROCESSING, TENSORS, "decoder"),
        (MODEL, PREPROCESSING, with_tensor("decoder.new", np.ones(1, np.float32)), "decoder"),
        (MODEL, PREPROCESSING, with_tensor("encoder.w", BUMPED), "token"),
        (MODEL, PREPROCESSING, with_tensor("encoder.w", TENSORS["encoder.w"].reshape(3, 2)), "token"),
        (MODEL, PREPROCESSING, with_tensor("encoder.w", TENSORS["encoder.w"].view(np.int32)), "token"),
        (MODEL, PREPROCESSING, with_tensor("encoder.new", np.ones(1, np.float32)), "token"),
        (MODEL, PREPROCESSING, with_tensor("quantizer.codebook", np.zeros((4, 2), np.float32)), "token"),
        (MODEL | {"encoder": {"channels": [9]}}, PREPROCESSING, TENSORS, "token"),
        (MODEL | {"quantizer": {"dim": 5}}, PREPROCESSING, TENSORS, "token"),
        (MODEL | {"patch": 8}, PREPROCESSING, TENSORS, "token"),
        (MODEL, {"range": [0, 1]}, TENSORS, "token"),
    ],
)
def test_a_change_alters_the_one_fingerprint_it_concerns(model, preprocessing, tensors, changes):
    before, after = fingerprint(MODEL, PREPROCESSING, TENSORS), fingerprint(model, preprocessing, tensors)
    assert (before.token != after.token, before.decoder != after.decoder) == (changes == "token", changes == "decoder")


def test_tensors_swapped_between_names_are_noticed():
    one, two = np.zeros(3, np.float32), np.ones(3, np.float32)
    before = fingerprint(MODEL, PREPROCESSING, {"encoder.a": one, "encoder.b": two})
    assert before != fingerprint(MODEL, PREPROCESSING, {"encoder.a": two, "encoder.b": one})


def edit_config(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in fields.items() if value != "REMOVE"}))


def test_a_missing_tensor_is_named(tmp_path):
    folder = write(tmp_path / "c")
    edit_config(folder, {"tensors": [*sorted(TENSORS), "encoder.head"]})
    with pytest.raises(ValueError, match=r"lacks the tensor encoder\.head"):
        read_checkpoint(folder)


def test_a_tensor_too_many_is_named(tmp_path):
    folder = write(tmp_path / "c")
    edit_config(folder, {"tensors": ["encoder.w", "quantizer.codebook"]})
    with pytest.raises(ValueError, match=r"has the unknown tensor decoder\.w"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/1"},
        {"model": "REMOVE"},
        {"preprocessing": "REMOVE"},
        {"tensors": "REMOVE"},
        {"preprocessing": {"range": [0, 1]}},
        {"model": MODEL | {"patch": 8}},
    ],
)
def test_a_config_that_was_changed_is_refused_by_name(tmp_path, change):
    folder = write(tmp_path / "c")
    edit_config(folder, change)
    with pytest.raises(ValueError, match=str(folder)):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "fingerprint", "model.safetensors"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"token": 1}'])
def test_a_damaged_file_is_refused_by_name(tmp_path, name, content):
    folder = write(tmp_path / "c")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=str(folder)):
        read_checkpoint(folder)


def test_not_one_tampered_byte_of_the_weights_is_accepted(tmp_path, flip_byte):
    folder = write(tmp_path / "c")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    # What the header says of the format binds nothing; names, types, shapes, places and numbers do.
    free = range(whole.index(b"vidvq.checkpoint"), whole.index(b"vidvq.checkpoint") + len(b"vidvq.checkpoint/1"))
    for offset in set(range(len(whole))) - set(free):
        flip_byte(weights, offset)
        try:
            read_checkpoint(folder)
        except ValueError:
            pass
        else:
            # JSON has spellings that mean the same; nothing else may pass.
            assert offset < whole.index(b"}}") + 40, f"byte {offset} may be changed unseen"
            assert read_checkpoint(folder).tensors.keys() == TENSORS.keys()
        weights.write_bytes(whole)


@pytest.mark.parametrize("missing", ["config.json", "fingerprint", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_no_checkpoint(tmp_path, missing):
    folder = write(tmp_path / "c")
    (folder / missing).unlink()
    assert not is_checkpoint(folder)
    with pytest.raises(ValueError, match=f"{folder} is not a checkpoint"):
        find_checkpoint(folder)


def test_the_newest_step_of_a_run_is_found(tmp_path):
    for step in (5, 100, 20):
        write(step_folder(tmp_path, step), step)
    half = step_folder(tmp_path, 200)
    half.mkdir()
    (half / "config.json").touch()
    (tmp_path / "checkpoints" / "step-00000300.tmp.host-1-aa").mkdir()
    assert [folder.name for folder in list_steps(tmp_path)] == ["step-00000005", "step-00000020", "step-00000100"]
    assert find_checkpoint(tmp_path).name == "step-00000100"


def test_a_writer_that_fails_leaves_nothing_and_keeps_the_old_one(tmp_path):
    folder = write(tmp_path / "c")
    with pytest.raises(ValueError):
        write_checkpoint(folder, MODEL | {"nan": float("nan")}, PREPROCESSING, TENSORS, 2)
    with pytest.raises(FileNotFoundError):
        write(folder, training=tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert read_checkpoint(folder).config["step"] == 1


def test_the_trainers_own_state_moves_in(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "x.pt").write_bytes(b"1")
    folder = write(tmp_path / "c", training=tmp_path / "state")
    assert (folder / "training" / "x.pt").read_bytes() == b"1"
    assert not (tmp_path / "state").exists()


def test_all_names_in_a_checkpoint_are_on_the_disk_before_it_has_its_own(tmp_path, monkeypatch):
    flushed: list[tuple[str, set[str]]] = []

    def flush(folder: Path) -> None:
        flushed.append((folder.name, {path.name for path in folder.iterdir()}))

    monkeypatch.setattr("vidvq.formats.checkpoint.sync_folder", flush)
    (tmp_path / "state").mkdir()
    write(tmp_path / "run" / "c", training=tmp_path / "state")
    (attempt, inside), (parent, outside) = flushed
    assert attempt.startswith("c.tmp.") and inside == {"model.safetensors", "config.json", "fingerprint", "training"}
    assert parent == "run" and outside == {"c"}


def test_a_writer_killed_anywhere_leaves_no_half_checkpoint(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
import numpy as np
from vidvq.formats.checkpoint import write_checkpoint
root = Path(sys.argv[1])
events = {"open", "os.rename", "os.remove", "os.mkdir", "os.link"}
for point in range(1000):
    folder = root / f"run{point}" / "c"
    child = os.fork()
    if not child:
        left = [point]
        def hook(event, arguments):
            if event in events and str(arguments[0]).startswith(str(root)):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        write_checkpoint(folder, {"decoder": 1}, {}, {"encoder.w": np.ones(9, np.float32)}, 1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(point)
        break
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    points = int(done.stdout)
    assert points > 8
    seen = [tmp_path / f"run{point}" / "c" for point in range(points + 1)]
    assert [folder.exists() for folder in seen].count(True) >= 1
    for folder in seen:
        assert not folder.exists() or read_checkpoint(folder)


def test_a_tokenizer_whose_weights_are_not_finite_is_refused(checkpoint_dir, tmp_path):
    checkpoint = read_checkpoint(checkpoint_dir)
    name = next(name for name in checkpoint.tensors if name.startswith("decoder."))
    tensors = dict(checkpoint.tensors)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = np.nan
    config = checkpoint.config
    write_checkpoint(tmp_path / "c", config["model"], config["preprocessing"], tensors, config["step"])
    with pytest.raises(UsageError, match=f"the weights {re.escape(name)} are not finite; give an earlier checkpoint"):
        load_tokenizer(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": 5}, "'int' object is not iterable"),
        (
            {"encoder": {"channels": [8, 8], "blocks": [0, 10**9]}},
            "the config has 10[0-9]* layers, more than there are",
        ),
        ({"encoder": {"channels": [10**13] * 2, "blocks": [0, 0]}}, "you tried to allocate"),
        ({"patch_size": 1 << 20, "tile": 1 << 22, "linear": 1}, "must have at most 262144 pixels"),
    ],
    ids=["type", "layers", "channels", "pixels"],
)
def test_a_config_of_more_than_the_weights_is_refused_before_it_is_built(change, message, checkpoint_dir, tmp_path):
    checkpoint = read_checkpoint(checkpoint_dir)
    model = checkpoint.config["model"] | change
    write_checkpoint(tmp_path / "c", model, checkpoint.config["preprocessing"], checkpoint.tensors, 1)
    with pytest.raises(UsageError, match=message) as caught:
        load_tokenizer(tmp_path / "c")
    assert "\n" not in str(caught.value)
