"""SIGKILL at any point, or several drivers at once: the directory has the same bytes as without."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.generators import make_card, write_random
from vidvq.formats.token_shard import read_tokenizer_card

KILLER = Path(__file__).parents[1] / "helpers/killer.py"


def killer(*arguments: object) -> list[int]:
    done = subprocess.run(
        [sys.executable, str(KILLER), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


TINIEST = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=1".split()


RAW = "gop_frames=5 items_per_shard=2 video.short_side=16 video.multiple=8 max_failed=1".split()


SAMPLE = "sampling.steps=1 format=none items_per_shard=1 runtime.workers=0".split()


@pytest.fixture(
    params=[
        *("shard", "tokenize-clips"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tokenize-videos", "sample", "predict")),
    ]
)
def command(request) -> list[object]:
    """A command line that makes two tiny shards in @OUT."""
    corpus, clips, checkpoint = map(request.getfixturevalue, ("tiny_corpus", "tiny_clips", "checkpoint_dir"))
    if request.param == "shard":
        return ["shard", corpus, "--out", "@OUT", *TINIEST, "runtime.workers=0"]
    if request.param in ("sample", "predict"):
        card = make_card(read_tokenizer_card(request.getfixturevalue("tiny_tokens")))
        run = write_random(request.getfixturevalue("tmp_path") / "generator", card)
        given = ["n=2"] if request.param == "sample" else [clips, "--checkpoint", checkpoint, "given=1"]
        return ["generate", request.param, run, *given, "--out", "@OUT", *SAMPLE]
    source = [clips] if request.param == "tokenize-clips" else [corpus, *RAW]
    return ["tokenize", *source, "--checkpoint", checkpoint, "--out", "@OUT", "runtime.workers=0"]


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_any_of_its_file_operations_a_job_resumes_to_the_same_bytes(command, step, tmp_path, snapshot):
    codes = killer(f"kill/{step}", tmp_path, *command)
    assert len(codes) * step > 30, "a job has that many file operations at least"
    assert set(codes) == {0}
    killed_before = [step * turn for turn in range(len(codes))]
    whole = snapshot(tmp_path / str(killed_before[-1]) / "out")
    assert sum(name.endswith(".tar") for name in whole) == 2
    for operation in killed_before:
        assert snapshot(tmp_path / str(operation) / "out") == whole, f"killed before file operation {operation}"


@pytest.mark.parametrize("turns", [2, pytest.param(16, marks=pytest.mark.slow)])
def test_three_drivers_at_once_leave_one_whole_directory(command, turns, tmp_path, snapshot):
    codes = killer(f"race/{turns}", tmp_path, *command)
    assert set(codes) == {0}
    whole = snapshot(tmp_path / "0" / "out")
    assert sum(name.endswith(".tar") for name in whole) == 2
    assert not [name for name in whole if ".tmp." in name]
    for turn in range(turns):
        assert snapshot(tmp_path / str(turn) / "out") == whole


@pytest.mark.slow
def test_three_decoders_at_once_leave_whole_folders(tiny_tokens, checkpoint_dir, tmp_path, snapshot):
    job = ("decode", tiny_tokens, "--checkpoint", checkpoint_dir, "format=png", "--out", "@OUT")
    assert set(killer("race/16", tmp_path, *job)) == {0}
    whole = snapshot(tmp_path / "0" / "out")
    assert sum(name.endswith(".png") for name in whole) == 8
    for turn in range(16):
        assert snapshot(tmp_path / str(turn) / "out") == whole, f"turn {turn}"


@pytest.fixture(params=["shard", "tokenize"])
def change(request, tiny_corpus, checkpoint_dir, vidvq, tmp_path) -> list[object]:
    """A command line that takes a video out of two shards' corpus in @OUT, of which there are copies enough."""
    job = [request.param, *([] if request.param == "shard" else ["--checkpoint", checkpoint_dir]), "runtime.workers=0"]
    settings = RAW if request.param == "tokenize" else [*TINIEST[:-1], "clips_per_shard=2"]
    assert vidvq(*job, tiny_corpus, *settings, "--out", tmp_path / "standing").code == 0
    for turn in range(60):
        shutil.copytree(tmp_path / "standing", tmp_path / str(turn) / "out")
    return [*job, "--remove", tiny_corpus / "one.mp4", "--out", "@OUT", "max_failed=1"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "race/8"])
def test_a_change_that_is_killed_anywhere_or_run_thrice_at_once_comes_out_the_same(mode, change, tmp_path, snapshot):
    codes = killer(mode, tmp_path, *change)
    assert set(codes) == {0} and 10 < len(codes) < 60
    turns = len(codes) if mode == "kill" else len(codes) // 3
    whole = snapshot(tmp_path / str(turns - 1) / "out")
    assert "plan-0001.json" in whole and "plan-0002.json" not in whole
    assert any("-r1.tar" in name for name in whole)
    for turn in range(turns):
        assert snapshot(tmp_path / str(turn) / "out") == whole, f"turn {turn}"


def committed(out: Path) -> int:
    return len(list((out / "commits").glob("*.tar.json")))


@pytest.mark.parametrize("kill_after", [1, 2, 3])
def test_a_process_group_killed_between_commits_resumes_to_the_same_bytes(
    kill_after, clips_dir, demo_videos, tiny_settings, tmp_path, kill_when, snapshot, vidvq
):
    arguments = ["shard", demo_videos / "train/carphone.mp4", "--out", tmp_path / "out", *tiny_settings]
    job = [str(argument) for argument in (*arguments, "runtime.workers=0")]
    assert kill_when(job, lambda: committed(tmp_path / "out") >= kill_after) == -signal.SIGKILL
    assert kill_after <= committed(tmp_path / "out") < 4
    assert vidvq(*job).code == 0
    assert snapshot(tmp_path / "out") == snapshot(clips_dir)


def test_a_ray_job_killed_with_its_workers_resumes_to_the_same_bytes(
    clips_dir, demo_videos, tiny_settings, tmp_path, kill_when, snapshot, vidvq
):
    out = tmp_path / "out"
    settings = [setting for setting in tiny_settings if not setting.startswith("clips_per_shard")]
    arguments = ["shard", demo_videos / "train/carphone.mp4", "--out", out, *settings, "clips_per_shard=4"]
    job = [str(argument) for argument in arguments]
    assert kill_when([*job, "runtime.workers=2"], lambda: committed(out) >= 1) == -signal.SIGKILL
    if committed(out) == 4:
        pytest.fail("the job was over before it was killed")
    time.sleep(1)  # workers outlive their driver by a moment
    assert vidvq(*job, "runtime.workers=0").code == 0
    assert snapshot(out) == snapshot(clips_dir)


def test_a_tokenizing_process_group_killed_between_commits_resumes_to_the_same_bytes(
    tokens_dir, clips_dir, checkpoint_dir, tmp_path, kill_when, snapshot, vidvq
):
    out = tmp_path / "out"
    job = ["tokenize", str(clips_dir), "--checkpoint", str(checkpoint_dir), "--out", str(out), "runtime.workers=0"]
    assert kill_when(job, lambda: committed(out) >= 1) == -signal.SIGKILL
    assert 1 <= committed(out) < 4
    assert vidvq(*job).code == 0
    assert snapshot(out) == snapshot(tokens_dir)


def test_a_finished_job_run_again_touches_no_shard(clips_dir, demo_videos, tiny_settings, copy_of, vidvq):
    out = copy_of(clips_dir)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar*")}
    ran = vidvq("shard", demo_videos / "train/carphone.mp4", "--out", out, *tiny_settings, "runtime.workers=0")
    assert ran.code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar*")} == before
