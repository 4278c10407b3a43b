"""A change of any byte of a directory is named by `vidvq verify`, or does not change what the directory says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vidvq.cli.main import run
from vidvq.errors import UsageError
from vidvq.export import verify_export
from vidvq.formats.checkpoint import verify_checkpoint, write_checkpoint
from vidvq.formats.verify import verify_folder
from vidvq.training.training_state import Progress, TrainingState, write_training_state

# What describes a run to people; no command reads it, and nothing in it is verified.
ACCOUNTS = {"metrics.json", "report.html"}
TARGETS = ("megatron", "bin", "parquet", "litdata", "mds", "energon")
# Flips in each file of the default run: the ends, and places spread evenly between.
SAMPLED = 9


def verify_plan(folder: Path) -> list[str]:
    return verify_folder(folder).problems


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flips") / "checkpoint"
    tensors = {f"{part}.w": np.arange(3, dtype=np.float32) for part in ("encoder", "quantizer", "decoder")}
    state = TrainingState(Progress(step=7, losses=[0.5]), {"average": {"w": torch.ones(3)}})
    write_training_state(folder.with_name("training"), state)
    model = {"encoder": {}, "decoder": {"channels": [8]}}
    write_checkpoint(folder, model, {"range": [-1, 1]}, tensors, step=7, training=folder.with_name("training"))
    return folder


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory, make_video) -> Path:
    """One clip and one video that is too short, in one shard: small enough to change every byte."""
    folder = tmp_path_factory.mktemp("flips")
    (folder / "videos").mkdir()
    make_video(folder / "videos/one.mp4", 4)
    make_video(folder / "videos/short.mp4", 2)
    settings = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 runtime.workers=0".split()
    assert run(["shard", str(folder / "videos"), "--out", str(folder / "clips"), *settings]) == 0
    return folder / "clips"


def flips(folder: Path, count: int | None) -> list[tuple[Path, int]]:
    """The places to change: all, or so many of each file."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ACCOUNTS:
            size = path.stat().st_size
            places = range(size) if count is None else np.unique(np.linspace(0, size - 1, count).astype(int)).tolist()
            found += [(path, place) for place in places]
    return found


def unseen(folder: Path, verify: Callable[[Path], list[str]], count: int | None, bit: int) -> tuple[int, list[str]]:
    """How many flips were tried; and those that nothing named although they change what a file says."""
    assert verify(folder) == []
    missed: list[str] = []
    tried = flips(folder, count)
    for path, place in tried:
        whole = path.read_bytes()
        data = bytearray(whole)
        data[place] ^= bit
        path.write_bytes(data)
        try:
            named = bool(verify(folder))
        except UsageError as error:
            named = True
            assert "\n" not in str(error)
        if not named and not says_the_same(path, whole, bytes(data)):
            missed.append(f"{path.relative_to(folder)}:{place} {whole[place]:#x}")
        path.write_bytes(whole)
    return len(tried), missed


def says_the_same(path: Path, before: bytes, after: bytes) -> bool:
    """Whether a change is of white space between the values of a JSON file."""
    if path.suffix != ".json" and path.name != "fingerprint":
        return False
    try:
        return json.loads(before) == json.loads(after)
    except ValueError:
        return False


@pytest.fixture(params=["clips", "tokens", "packed", "checkpoint", *TARGETS])
def kind(request, tmp_path, copy_of, one_shard, tiny_tokens, checkpoint_dir, checkpoint, vidvq):
    """A small directory of one kind, and what verifies it."""
    if request.param == "checkpoint":
        return copy_of(checkpoint), lambda folder: verify_checkpoint(folder)[0]
    if request.param == "clips":
        return copy_of(one_shard), verify_plan
    if request.param in {"tokens", "packed"}:
        job = ("tokenize", one_shard, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", "runtime.workers=0")
        assert vidvq(*job, *(["pack=true", "quality.share=1"] if request.param == "packed" else [])).code == 0
        return tmp_path / "out", verify_plan
    assert vidvq("export", tiny_tokens, "--to", request.param, "--out", tmp_path / "out").code == 0
    return tmp_path / "out", lambda folder: verify_export(folder)[0]


def test_a_flip_in_any_region_of_any_file_is_named(kind):
    folder, verify = kind
    tried, missed = unseen(folder, verify, SAMPLED, 0x01)
    assert tried >= 3 * SAMPLED
    assert not missed, f"{len(missed)} of {tried} flips: {missed[:20]}"


@pytest.mark.slow
# 20,000 verifications of the largest directory; minutes on an idle machine.
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("bit", [0x01, 0x20])
def test_a_flip_of_every_byte_is_named(kind, bit, record_property):
    folder, verify = kind
    tried, missed = unseen(folder, verify, None, bit)
    record_property("flips", tried)
    assert not missed, f"{len(missed)} of {tried} flips: {missed[:20]}"
