"""Inputs as people lay them out: outputs beside them, names that look like settings, and files that come back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidvq.corpus.fetch import local_file
from vidvq.formats.clip_shard import read_clips
from vidvq.shard import probe
from vidvq.video import VideoError

SETTINGS = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8".split()
RUN = ("runtime.workers=0", "max_failed=1")


def sources(out: Path) -> list[str]:
    """The names of the videos that have clips, sorted."""
    return sorted({Path(info.source).name for path in out.glob("*.tar") for _, _, info in read_clips(path)})


def test_an_output_inside_an_input_folder_is_no_input(tmp_path, make_video, snapshot, vidvq):
    make_video(tmp_path / "a.mp4", 4)
    (tmp_path / "sub").mkdir()
    make_video(tmp_path / "sub/b.mp4", 4, size=(32, 80))
    out = tmp_path / "out"
    assert vidvq("shard", tmp_path, "--out", out, *SETTINGS, *RUN).code == 0
    before = snapshot(out)
    assert vidvq("shard", tmp_path, "--out", out, *SETTINGS, *RUN).code == 0
    assert snapshot(out) == before
    assert vidvq("shard", tmp_path, "--out", tmp_path / "other", *SETTINGS, *RUN).code == 0
    assert sources(tmp_path / "other") == sources(out) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("name", ["a=b.mp4", "clip.fps=3.mp4", "x=y/z.mp4", "=.mp4", "clip.fps=3"])
def test_a_name_with_an_equals_sign_is_an_input_where_it_exists(name, tmp_path, make_video, monkeypatch, vidvq):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    make_video(tmp_path / "v.mp4", 4).rename(path)
    ran = vidvq("shard", name, "--out", "out", *SETTINGS, *RUN)
    assert ran.code == 0, ran.err
    assert sources(tmp_path / "out") == [path.name]


def test_a_name_is_printed_in_any_encoding(tmp_path, make_video, vidvq):
    make_video(tmp_path / "кино.mp4", 4)
    assert vidvq("shard", tmp_path / "кино.mp4", "--out", tmp_path / "out", *SETTINGS, *RUN).code == 0
    inspect = [sys.executable, "-m", "vidvq", "inspect", str(tmp_path / "out/clips-000000.tar")]
    ran = subprocess.run(inspect, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert ran.returncode == 0 and rb"\u043a\u0438\u043d\u043e-" in ran.stdout, ran


def test_a_retry_takes_a_reason_or_all_of_one_kind(tmp_path, make_video, monkeypatch, vidvq):
    answers = {"a.mp4": "fetch_failed(403)", "b.mp4": "fetch_failed(unknown_host)", "c.mp4": "fetch_failed"}
    for index, name in enumerate([*answers, "d.mp4"]):
        make_video(tmp_path / name, 4, size=(32, 64 + 8 * index))
    out = tmp_path / "out"

    def refuse(source, *arguments, **options):
        if reason := answers.get(Path(source.uri).name):
            raise VideoError(reason, "is not there today")
        return local_file(source, *arguments, **options)

    with monkeypatch.context() as today:
        today.setattr(probe, "local_file", refuse)
        assert vidvq("shard", tmp_path, "--out", out, *SETTINGS, *RUN).code == 0
    assert sources(out) == ["d.mp4"]
    ran = vidvq("shard", "--out", out, "--retry-failed=fetch", *RUN)
    assert ran.code == 2 and "give one" in ran.error and "fetch_failed(403) (1)" in ran.error
    assert sources(out) == ["d.mp4"], "a part of a reason's name is no reason"
    assert vidvq("shard", "--out", out, "--retry-failed=fetch_failed(403)", *RUN).code == 0
    assert sources(out) == ["a.mp4", "d.mp4"]
    assert vidvq("shard", "--out", out, "--retry-failed=fetch_failed", *RUN).code == 0
    assert sources(out) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
