"""`vidvq convert`: pickled checkpoints to folders of safetensors."""

import errno
import json
import os

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vidvq.pretrained import load_tokenizer

CONFIG = {
    "model_type": "emu3_vqgan",
    "codebook_size": 64,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "hidden_size": 32,
    "attn_resolutions": [],
}


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig(**CONFIG)).eval()


def test_a_training_checkpoint_becomes_a_tokenizer(model, tmp_path, vidvq):
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"loss.perceptual.weight": torch.zeros(3), "model.steps": 7}
    torch.save({"state_dict": state, "optimizer_states": [{"lr": 1e-4}], "epoch": 3}, tmp_path / "last.ckpt")
    keys = {"drop": [r"loss\."], "rename": {r"^model\.": ""}}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(keys))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    arguments = ["--keys", tmp_path / "keys.yaml", "--model-config", tmp_path / "config.json"]
    ran = vidvq("convert", tmp_path / "last.ckpt", "--out", tmp_path / "emu3", *arguments)
    assert ran.code == 0, ran.err
    assert "tensors of state_dict with" in ran.err and "2 entries left out" in ran.err
    assert "as a --checkpoint, it is loaded as Emu3Tokenizer" in ran.err
    assert {path.name for path in (tmp_path / "emu3").iterdir()} == {"model.safetensors", "config.json"}
    model.save_pretrained(tmp_path / "saved")
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    converted, saved = load_tokenizer(tmp_path / "emu3")[0], load_tokenizer(tmp_path / "saved")[0]
    assert torch.equal(converted.encode(video), saved.encode(video))


def test_tensors_that_share_memory_are_written_once_each(tmp_path, vidvq):
    shared = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": shared, "b": shared.t(), "c": shared[1]}, tmp_path / "a.pth")
    ran = vidvq("convert", tmp_path / "a.pth", "--out", tmp_path / "out")
    assert ran.code == 0 and "it is not a tokenizer that vidvq knows" in ran.err, ran.err
    found = load_file(tmp_path / "out/model.safetensors")
    assert (
        torch.equal(found["a"], shared) and torch.equal(found["b"], shared.t()) and torch.equal(found["c"], shared[1])
    )


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_with_code_is_refused_and_its_code_is_not_run(tmp_path, vidvq):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Evil(tmp_path / "touched")}, tmp_path / "a.pt")
    ran = vidvq("convert", tmp_path / "a.pt", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "system to be loaded, which is code and may do anything; ask its authors for safetensors" in ran.error
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out").exists()


MISTAKES = {
    "missing": ({}, "a.pth does not exist; give a file of torch.save"),
    "folder": ({}, "a.pth is a folder; give the file in it"),
    "text": ({}, "is damaged, or of another format; give a checkpoint of tensors that torch.save wrote"),
    "script": ({}, "is a TorchScript file, which is code; give a checkpoint of tensors"),
    "sparse": ({}, "s is sparse, which safetensors cannot hold; leave it out with drop: in --keys"),
    "meta": ({}, "m is without data, which safetensors cannot hold"),
    "complex": ({}, "safetensors cannot hold tensors of torch.complex128; leave them out with drop: in --keys"),
    "repeats": ({}, "repeat elements to 134,217,728 bytes, 67,1"),
    "nothing": ({}, "has no tensors in its top level, only: epoch; set entry: in --keys"),
    "entry": ({"entry": "ema.weights"}, "has no entry ema.weights; at 'ema' there is: state_dict"),
    "clash": ({"rename": {"[ab]": "x"}}, "a and b both become x; change rename: in --keys"),
    "pattern": ({"rename": {"(": "x"}}, "'(' in --keys is not a regular expression"),
    "replacement": ({"rename": {"a": r"\1"}}, r"'\\1' in --keys is not a replacement"),
    "all": ({"drop": [""]}, "drop: in --keys leaves no tensors"),
    "unknown": ({"renames": {}}, "renames"),
    "config": ({"config": CONFIG}, "is not a readable emu3 tokenizer: its weights have missing keys"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake, tmp_path, vidvq):
    keys, message = MISTAKES[mistake]
    path = tmp_path / "a.pth"
    special = {
        "nothing": {"epoch": 3},
        "complex": {"c": torch.zeros(2, dtype=torch.complex128)},
        "repeats": {"r": torch.zeros(1).expand(1 << 25)},
        "sparse": {"s": torch.eye(2).to_sparse()},
        "meta": {"m": torch.empty(2, device="meta")},
    }
    if mistake == "text":
        path.write_text("nothing")
    elif mistake == "folder":
        path.mkdir()
    elif mistake == "script":
        torch.jit.trace(torch.nn.Identity(), torch.zeros(1)).save(str(path))
    elif mistake in special:
        torch.save(special[mistake], path)
    elif mistake != "missing":
        torch.save({"state_dict": {"a": torch.zeros(1), "b": torch.zeros(2)}}, path)
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    ran = vidvq("convert", path, "--out", tmp_path / "out", "--keys", tmp_path / "keys.json")
    assert ran.code == 2
    assert message in ran.error and "weights_only" not in ran.err
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_text_become_text(tmp_path, vidvq):
    torch.save({1: torch.zeros(2), 2: torch.ones(3)}, tmp_path / "a.pth")
    assert vidvq("convert", tmp_path / "a.pth", "--out", tmp_path / "out").code == 0
    assert load_file(tmp_path / "out/model.safetensors").keys() == {"1", "2"}


def test_a_full_disk_is_reported_with_its_file(tmp_path, vidvq, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Of the weights: they are on the disk before the folder gets its name.
    monkeypatch.setattr(os, "fsync", full)
    ran = vidvq("convert", tmp_path / "a.pth", "--out", tmp_path / "out")
    assert ran.code == 1 and "No space left" in ran.error and "model.safetensors" in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_the_name_of_the_folder_survives_a_power_loss(tmp_path, vidvq, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    synced = []
    monkeypatch.setattr("vidvq.pretrained.convert.sync_folder", lambda folder: synced.append(sorted(folder.iterdir())))
    assert vidvq("convert", tmp_path / "a.pth", "--out", tmp_path / "out").code == 0
    assert synced == [[tmp_path / "a.pth", tmp_path / "out"]]


def test_a_url_is_not_taken_for_a_local_folder(tmp_path, monkeypatch, vidvq):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1)}, "a.pth")
    ran = vidvq("convert", "a.pth", "--out", "s3://bucket/folder")
    assert ran.code == 2 and "s3://bucket/folder is not a local folder; convert to one" in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_an_existing_folder_is_kept(tmp_path, vidvq):
    (tmp_path / "out").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    ran = vidvq("convert", tmp_path / "a.pth", "--out", tmp_path / "out")
    assert ran.code == 2 and "exists; give another --out" in ran.error
