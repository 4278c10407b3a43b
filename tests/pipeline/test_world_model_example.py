"""The world model example: a real game is recorded with its actions, and its settings are those of the stages."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidvq.config import load
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.columns import read_table
from vidvq.generate.config import GenerateTrainConfig
from vidvq.generate.requests import PlayConfig
from vidvq.train import TrainConfig
from vidvq.video.decode import decode_clip

EXAMPLE = Path(__file__).parents[2] / "examples/world_model"
# What each stage needs to end in a moment.
SMALL = {
    "train": "steps=2 checkpoint_every=2 log_every=1 data.batch_size=2 model.quantizer.spatial.warmup=1",
    "generate train": "steps=2 checkpoint_every=2 log_every=1 data.batch_size=2 data.workers=0",
    "generate evaluate": "clips=2 seeds=[0] sampling.steps=2",
    "shard": "runtime.workers=0",
    "map": "runtime.workers=0",
    "tokenize": "runtime.workers=0",
}


def module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_step_of_the_player_moves_the_picture_by_a_cell():
    frames, actions = zip(*module("record").play(0, 12), strict=True)
    assert frames[0].shape == (72, 72, 3) and actions[0] == (0, 0, 0)
    steps = 0
    # The lowest two rows of cells show the inventory.
    for before, after, (right, down, _) in zip(frames, frames[1:], actions[1:], strict=False):
        moved = np.roll(before[:56], (-8 * down, -8 * right), axis=(0, 1))
        assert (moved == after[:56])[8:48, 8:64].mean() > 0.93
        steps += bool(right or down)
    assert steps > 6


def test_a_seed_repeats_the_game():
    first, again = (list(module("record").play(1000, 60)) for _ in range(2))
    assert [action for _, action in first] == [action for _, action in again]
    assert all(
        np.array_equal(*pair) for pair in zip(*([frame for frame, _ in game] for game in (first, again)), strict=True)
    )


def test_the_actions_of_a_clip_are_those_of_its_frames(tmp_path, vidvq):
    record = module("record")
    row = record.record(tmp_path, 0, 3, 27)
    (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
    settings = module("run").CLIP
    clips = tmp_path / "clips"
    assert vidvq("shard", tmp_path / "list.jsonl", "--out", clips, *settings, "runtime.workers=0").code == 0
    function = f"{EXAMPLE / 'actions.py'}:actions"
    done = vidvq("map", clips, "--function", function, "runtime.workers=0")
    assert done.code == 0, done.err
    played, found = json.loads(row["played"]), read_table(clips, {"actions"}).rows
    original = [frame for frame, _ in record.play(3, 27)]
    assert len(found) == 3
    for key, media, info in read_clips(next(clips.glob("*.tar"))):
        first = 9 * info.clip_index
        assert json.loads(found[key]["actions"]) == played[first : first + 9]
        error = np.abs(decode_clip(media, key).astype(int) - np.stack(original[first : first + 9])).mean()
        assert error < 8


def test_the_settings_are_those_of_the_stages():
    tokenizer = load(TrainConfig, EXAMPLE / "tokenizer.yaml", [])
    generator = load(GenerateTrainConfig, EXAMPLE / "generator.yaml", [])
    play = load(PlayConfig, EXAMPLE / "play.yaml", [])
    assert tokenizer.model.temporal_factor == 1 and tokenizer.data.num_frames == generator.data.latents
    assert set(play.keys.values()) <= set(map(tuple, map(np.array, module("record").ACTIONS.values())))


@pytest.mark.slow
def test_all_stages_run(tmp_path, monkeypatch):
    example = module("run")
    monkeypatch.setattr(example, "SPLITS", {"train": ("0", "2", "27"), "heldout": ("9", "1", "27")})
    for command in example.commands(tmp_path, 0):
        if "play" in command:
            break
        verb = next((name for name in SMALL if name.split() == command[3 : 3 + len(name.split())]), None)
        done = subprocess.run(
            [*command, *(SMALL[verb].split() if verb else ())], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores-0.json").read_text())
    assert {"predict", "unconditional", "unigram"} <= scores["bits"].keys() and "predict" in scores["tasks"]
    assert sys.executable in command
