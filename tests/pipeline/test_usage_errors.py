"""Wrong arguments and damaged files: a one-line error each, and no partial files."""

import json
import os
import shutil
from pathlib import Path

import pytest

from vidvq.formats.clip_shard import read_clips
from vidvq.storage import write_atomic

INLINE = "runtime.workers=0"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", b'{"a": 1}', "is JSON of format unknown"),
        ("summary.json", b'{"a": 1}', "is JSON of format unknown, not an artifact; give a video, or a shard"),
        ("x.json", b"[1]", "x.json"),
        ("x.json", b"{", "x.json"),
        ("x.csv", b"url\n", "is a list of videos; vidvq shard"),
        ("x.parquet", b"PAR1", "is not a readable parquet file"),
        ("x.tar", b"", "is not a readable tar"),
        ("x.mp4", b"", "empty_file"),
        ("x.mp4", b"#EXTM3U\n", "not_a_video"),
        ("plan.json", b"{}", "is not of format vidvq.plan/2"),
        ("tokenizer.json", b"[]", "tokenizer.json"),
        ("config.json", b"{}", "is not a checkpoint"),
    ],
)
def test_inspecting_something_else_is_a_one_line_error(tmp_path, vidvq, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    ran = vidvq("inspect", path)
    assert ran.code == 2
    assert said in ran.error


@pytest.mark.parametrize("setting", ["deadline_s=0", "deadline_s=-1", "max_frames=-3", "max_pixels=0", "max_bytes=0"])
def test_a_limit_below_every_video_is_refused(tmp_path, demo_videos, vidvq, setting):
    ran = vidvq("shard", demo_videos / "train", "--out", tmp_path / "out", f"limits.{setting}", INLINE)
    assert ran.code == 2
    assert setting.split("=")[0] in ran.error
    assert not (tmp_path / "out").exists()


def test_settings_without_a_video_ask_for_one(tmp_path, vidvq):
    ran = vidvq("shard", "clip.fps=3", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "no inputs are given; see vidvq shard --help" in ran.error


def test_yaml_that_is_not_yaml_is_one_line(tmp_path, demo_videos, vidvq):
    ran = vidvq("shard", demo_videos / "train", "--out", tmp_path / "out", "clip.fps=[1")
    assert ran.code == 2
    assert "'clip.fps=[1' is not YAML" in ran.error


@pytest.mark.parametrize("value", [".inf", ".nan", "[3, -.inf]"])
def test_a_number_that_is_not_finite_is_one_line(tmp_path, demo_videos, vidvq, value):
    ran = vidvq("shard", demo_videos / "train", "--out", tmp_path / "out", f"clip.fps={value}", INLINE)
    assert ran.code == 2
    assert "clip.fps=" in ran.error and "must be a finite number" in ran.error


def test_a_rate_whose_reciprocal_is_not_exact_is_refused(tmp_path, demo_videos, vidvq):
    ran = vidvq("shard", demo_videos / "train", "--out", tmp_path / "out", "clip.fps=0.000001", INLINE)
    assert ran.code == 2 and "fps=1e-06: must be a number, from 1e-05 to 1000, or null" in ran.error


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "clips", "--checkpoint", "ck", "--out"),
        ("evaluate", "clips", "--checkpoint", "ck", "--report"),
        ("generate", "evaluate", "run", "tokens", "--out"),
        ("generate", "evaluate", "run", "tokens", "--codes"),
        ("view", "tokens", "--out"),
    ],
    ids=" ".join,
)
def test_a_folder_or_a_foreign_file_to_write_is_refused_before_any_work(tmp_path, vidvq, command):
    ran = vidvq(*command, tmp_path)
    assert ran.code == 2 and f"{tmp_path} is a folder; give a file" in ran.error
    assert not list(tmp_path.iterdir())
    mine = tmp_path / "mine"
    for content in (b'{"notes": []}', b"<!doctype html><title>mine</title>", b"\0\0\0\x1cftyp"):
        mine.write_bytes(content)
        ran = vidvq(*command, mine)
        assert ran.code == 2 and f"{mine} exists and was not written by this option; give another file" in ran.error
        assert mine.read_bytes() == content
    mine.write_bytes(b"")
    ran = vidvq(*command, mine)
    assert ran.code == 2 and "--out" not in ran.error and "was not written" not in ran.error


def test_a_pipe_is_not_replaced_by_a_file(tmp_path, vidvq):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ran = vidvq("view", "tokens", "--out", pipe)
    assert ran.code == 2 and f"{pipe} exists and was not written by this option" in ran.error
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["shard", ""], "the argument after shard is empty"),
        (["shard", "a.mp4", "--out", ""], "the argument after --out is empty"),
        (["shard", "a.mp4", "--out="], "the argument after --out= is empty"),
        (["shard", "--out", "out", "--retry-failed="], "the argument after --retry-failed= is empty"),
        (["train", "demo", "--out", "a", "out=b"], "--out a and out=b are one setting; give one of them"),
        (["generate", "train", "--out", "a", "out=b"], "--out a and out=b are one setting"),
        (["generate", "train", "a", "data.tokens=b"], "TOKENS and data.tokens=b are one setting"),
        (["decode", "tokens", "--out", "a", "--key", "a", "key=b"], "--key a and key=b are one setting"),
    ],
)
def test_empty_arguments_and_settings_given_twice_are_refused(tmp_path, monkeypatch, vidvq, command, said):
    monkeypatch.chdir(tmp_path)
    ran = vidvq(*command)
    assert ran.code == 2 and said in ran.error
    assert not list(tmp_path.iterdir())


def test_an_argument_that_ends_in_an_equals_sign_is_not_empty(vidvq):
    assert "is empty" not in vidvq("generate", "guide", "missing", "--text=a=", "--clip", "c", "--out", "o").error


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_one(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write_atomic(tmp_path / "x", b"data")
    assert caught.value.filename == str(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_scoring_damaged_clips_is_one_line(tmp_path, clips_dir, tokens_dir, copy_of, vidvq):
    copy = copy_of(clips_dir)
    shard = copy / "clips-000000.tar"
    key, media, _ = next(read_clips(shard))
    data = shard.read_bytes()
    shard.write_bytes(data.replace(media, b"\xff" * len(media)))
    ran = vidvq("evaluate", copy, tmp_path, "--tokens", tokens_dir)
    assert ran.code == 2
    assert key in ran.error


def test_tokenizing_changed_clips_into_the_same_directory_is_refused(
    tmp_path, demo_videos, tiny_settings, checkpoint_dir, tokens_dir, copy_of, snapshot, vidvq
):
    clips = tmp_path / "clips"
    video = demo_videos / "train/carphone.mp4"
    assert vidvq("shard", video, "--out", clips, *tiny_settings, "clip.crf=30", INLINE).code == 0
    out = copy_of(tokens_dir)
    ran = vidvq("tokenize", clips, "--checkpoint", checkpoint_dir, "--out", out, INLINE)
    assert ran.code == 2
    assert "clips.plan_id was" in ran.error
    assert snapshot(out) == snapshot(tokens_dir)


def test_clips_that_are_not_finished_are_not_tokenized(tmp_path, clips_dir, checkpoint_dir, copy_of, vidvq):
    copy = copy_of(clips_dir)
    (copy / "commits/clips-000002.tar.json").unlink()
    ran = vidvq("tokenize", copy, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", INLINE)
    assert ran.code == 2
    assert "clips-000002.tar is not committed; finish vidvq shard first" in ran.error
    assert not (tmp_path / "out").exists()


def test_a_clip_shard_damaged_since_it_was_committed_is_not_tokenized(
    tmp_path, clips_dir, checkpoint_dir, copy_of, flip_byte, vidvq
):
    copy = copy_of(clips_dir)
    flip_byte(copy / "clips-000001.tar", 5000)
    ran = vidvq("tokenize", copy, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", INLINE)
    assert ran.code == 2
    assert "clips-000001.tar is missing or not the one that was planned" in ran.error
    assert not list((tmp_path / "out").glob("tokens-000001*"))


@pytest.mark.parametrize(
    ("record", "change"),
    [
        ("plan.json", {"shards": None}),
        ("plan.json", {"table": 1.5}),
        ("plan.json", {"made_from": []}),
        ("commits/tokens-000000.tar.json", {"bytes": "many"}),
        ("commits/tokens-000000.tar.json", {"stats": {"frames": None}}),
        ("commits/tokens-000000.tar.json", {"members": [[None, 1, 2]]}),
        ("tokenizer.json", {"temporal_factor": "four"}),
    ],
)
def test_a_record_with_a_field_of_another_type_is_one_line(tokens_dir, copy_of, vidvq, record, change):
    copy = copy_of(tokens_dir)
    (copy / record).write_text(json.dumps(json.loads((copy / record).read_text()) | change))
    ran = vidvq("inspect", copy)
    assert ran.code == 2
    assert str(copy / record) in ran.error and next(iter(change)) in ran.error


def test_a_list_with_a_null_byte_is_no_text(tmp_path, vidvq):
    (tmp_path / "list.csv").write_bytes(b"url\n\x00\n")
    ran = vidvq("shard", tmp_path / "list.csv", "--out", tmp_path / "out", INLINE)
    assert ran.code == 2 and "list.csv is not text in UTF-8 (it holds a NUL byte); save it as UTF-8" in ran.error


@pytest.mark.parametrize(
    "change",
    [{"tensors": None}, {"tensors": [1]}, {"preprocessing": None}, {"model": []}, {"model": {"patch": "none"}}],
)
def test_a_checkpoint_with_a_broken_config_is_one_line(tmp_path, clips_dir, checkpoint_dir, copy_of, vidvq, change):
    copy: Path = copy_of(checkpoint_dir)
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    ran = vidvq("tokenize", clips_dir, "--checkpoint", copy, "--out", tmp_path / "out", INLINE)
    assert ran.code == 2
    assert str(copy) in ran.error
    assert not (tmp_path / "out").exists()


def test_inspect_describes_a_folder_of_decoded_clips(tmp_path, tokens_dir, checkpoint_dir, vidvq):
    out = tmp_path / "decoded"
    assert vidvq("decode", tokens_dir, "--checkpoint", checkpoint_dir, "--out", out, "format=npy", INLINE).code == 0
    ran = vidvq("inspect", out)
    assert ran.code == 0
    assert f"{len(list(out.glob('*.npy')))} decoded clips" in ran.out
    assert vidvq("inspect", out / "decode.json").out == ran.out
    ran = vidvq("verify", out)
    assert ran.code == 2 and "holds decoded clips, which have no checksums; verify the tokens" in ran.error
    ran = vidvq("verify", tmp_path)
    assert ran.code == 2 and "shard, map, tokenize, generate or export wrote, or a checkpoint" in ran.error


def test_a_summary_is_described_with_its_job(clips_dir, vidvq):
    assert vidvq("inspect", clips_dir / "summary.json").out == vidvq("inspect", clips_dir).out != ""


def test_training_without_clips_names_the_setting(tmp_path, monkeypatch, tokens_dir, vidvq):
    monkeypatch.chdir(tmp_path)
    ran = vidvq("train", "demo")
    assert ran.code == 2 and "demo/clips/train does not exist; set data.clips to a directory that vidvq" in ran.error
    ran = vidvq("train", "demo", f"data.clips={tokens_dir}")
    assert ran.code == 2 and "was written by vidvq tokenize; set data.clips to" in ran.error


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "data.clips=clips"], "a config must precede data.clips=clips; give a YAML file or a packaged name"),
        (["train", "demo", "clips"], "'clips' is not a setting; give key.sub=value, such as clips=VALUE"),
        (["config", "shrad"], "'shrad' is not a command with settings; did you mean shard?"),
        (["shard", "{video}", "--out", "{video}"], "box.mp4 is a file; give a folder as --out"),
        (["shard", "*.avi", "--out", "x"], "no file matches *.avi; give video files, folders, globs"),
        (["tokenize", "{clips}", "--out", "x", "gop_frames=10"], "gop_frames=10 is for raw video; each clip in"),
    ],
)
def test_a_slip_of_a_newcomer_is_told_what_to_give(tmp_path, monkeypatch, clips_dir, demo_videos, vidvq, command, said):
    monkeypatch.chdir(tmp_path)
    video = shutil.copy(demo_videos / "train/box.mp4", tmp_path)
    ran = vidvq(*(each.format(video=video, clips=clips_dir) for each in command))
    assert ran.code == 2 and said in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["box.mp4"]
