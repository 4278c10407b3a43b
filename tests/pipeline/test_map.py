"""`vidvq map`: a user's function over clips; its results are columns beside them, exactly once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.decoders import clips_or_crash
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.columns import read_columns, read_table
from vidvq.video.decode import decode_clip

FUNCTIONS = Path(__file__).parents[1] / "helpers/map_functions.py"
INLINE = "runtime.workers=0"


@pytest.fixture
def clips(clips_dir, copy_of) -> Path:
    return copy_of(clips_dir, "clips")


def failures(folder: Path) -> dict[str, tuple[str, str]]:
    """Reason and detail by the end of the key."""
    commits = [json.loads(path.read_text()) for path in (folder / "commits").iterdir()]
    return {item["key"][-1:]: (item["reason"], item["detail"]) for commit in commits for item in commit["failed"]}


def test_the_columns_are_what_the_function_returns_for_each_clip(clips, vidvq, snapshot):
    before = snapshot(clips)
    ran = vidvq("map", clips, "--function", f"{FUNCTIONS}:motion", INLINE)
    assert ran.code == 0, ran.err
    out = clips / "columns/motion"
    found = {}
    for path in sorted(clips.glob("*.tar")):
        columns = dict(read_columns(out / path.name.replace("clips", "columns")))
        decoded = [(key, decode_clip(media, key), info) for key, media, info in read_clips(path)]
        assert list(columns) == [key for key, _, _ in decoded]
        for key, frames, info in decoded:
            moved = np.abs(np.diff(frames.astype(int), axis=0)).mean() / 255
            assert columns[key] == {"motion": moved, "index": info.clip_index, "moves": moved > 0.007, "note": None}
        found |= columns
    assert read_table(clips).rows == found
    assert {name: value for name, value in snapshot(clips).items() if "columns/" not in name} == before
    assert vidvq("verify", out).code == 0 and vidvq("verify", clips).code == 0
    assert "columns of plan" in vidvq("inspect", out).out
    assert "motion=0.0" in vidvq("inspect", out / "columns-000000.tar").out


def test_a_second_run_makes_nothing_again(clips, vidvq, snapshot):
    job = ("map", clips, "--function", f"{FUNCTIONS}:motion", INLINE)
    assert vidvq(*job).code == 0
    times = {path: path.stat().st_mtime_ns for path in (clips / "columns/motion").glob("*.tar")}
    assert vidvq(*job).code == 0
    assert times == {path: path.stat().st_mtime_ns for path in (clips / "columns/motion").glob("*.tar")}


def test_what_a_function_does_wrong_costs_one_clip_and_is_said(clips, vidvq):
    ran = vidvq("map", clips, "--function", f"{FUNCTIONS}:bad", INLINE, "deadline_s=4")
    assert ran.code == 1 and "38.5% of the items failed" in ran.err
    out = clips / "columns/bad"
    found = failures(out)
    keys = [key for path in sorted(clips.glob("*.tar")) for key, _, _ in read_clips(path)]
    stem = keys[0][:-1]
    assert found == {
        "1": ("function_error", f"{stem}1: returned list; a function returns a dict of columns"),
        "2": ("function_error", f"{stem}2: KeyError: 'two\\nlines' (map_functions.py:24)"),
        "3": ("function_died", f"{stem}3: the function crashed on it or ran past deadline_s=4"),
        "4": ("function_error", f"{stem}4: column a is dict; it must be text, a number, a bool or None"),
        "5": ("function_died", f"{stem}5: the function crashed on it or ran past deadline_s=4"),
    }
    assert vidvq("verify", out).code == 0
    retried = vidvq(
        "map",
        clips,
        "--function",
        f"{FUNCTIONS}:bad",
        INLINE,
        "--retry-failed=function_error",
        *("max_failed=1", "deadline_s=4"),
    )
    assert retried.code == 0 and "3 failed items to retry" in retried.err
    assert {key: reason for key, (reason, _) in failures(out).items()} == {key: found[key][0] for key in found}
    assert vidvq("verify", out).code == 0


def test_a_class_and_a_factory_are_built_once_in_a_worker(clips, vidvq):
    for name in ("Counter", "factory"):
        assert vidvq("map", clips, "--function", f"{FUNCTIONS}:{name}", INLINE, "arguments.start=10").code == 0
        out = clips / "columns" / name
        calls = [row["call"] for path in sorted(out.glob("*.tar")) for _, row in read_columns(path)]
        assert calls == list(range(11, 24))
        shutil.rmtree(out)


def test_a_broken_clip_is_a_failure_and_mends_by_retrying_a_followed_shard(tmp_path, make_video, vidvq):
    videos, clips = tmp_path / "videos", tmp_path / "clips"
    videos.mkdir()
    make_video(videos / "a.mp4", 8)
    settings = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=2".split()
    assert vidvq("shard", videos, "--out", clips, *settings, INLINE).code == 0
    job = ("map", clips, "--function", f"{FUNCTIONS}:motion", INLINE, "--out", tmp_path / "columns")
    assert vidvq(*job).code == 0
    first = {path.name for path in (tmp_path / "columns").glob("*.tar")}
    make_video(videos / "b.mp4", 4)
    assert vidvq("shard", videos / "b.mp4", "--out", clips, "--add", INLINE).code == 0
    assert vidvq("shard", "--out", clips, "--remove", videos / "a.mp4", INLINE).code == 0
    ran = vidvq(*job)
    assert ran.code == 0, ran.err
    assert {path.name for path in (tmp_path / "columns").glob("*.tar")} == {"columns-000001.tar"} != first
    assert vidvq("verify", tmp_path / "columns").code == 0


def test_a_clip_that_is_damaged_or_crashes_the_decoder_costs_itself_alone(clips, vidvq, monkeypatch):
    monkeypatch.setattr("vidvq.jobs.clip_functions.decode_clips", clips_or_crash)
    ran = vidvq("map", clips, "--function", f"{FUNCTIONS}:motion", INLINE, "max_failed=1")
    assert ran.code == 0, ran.err
    out = clips / "columns/motion"
    assert {key: reason for key, (reason, _) in failures(out).items()} == {"1": "decode_error", "2": "decoder_died"}
    assert vidvq("verify", out).code == 0


def test_another_function_version_or_argument_is_another_job(clips, vidvq, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text("def f(frames, info, k=1):\n    return {'a': k}\n")
    job = ("map", clips, "--function", f"{source}:f", INLINE)
    assert vidvq(*job).code == 0
    assert 'version was "", now "2"' in vidvq(*job, "version=2").error
    assert "arguments.k was absent, now 2" in vidvq(*job, "arguments.k=2").error
    source.write_text("def f(frames, info, k=1):\n    return {'a': k + 1}\n")
    assert "was made from other inputs or settings: function.sha256 was" in vidvq(*job).error
    assert "function.sha256 was" in vidvq(*job, "--retry-failed").error


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        ("motion", [], "--function motion names no callable; give module:callable or path/to/file.py:callable"),
        ("no_such_module:f", [], "no_such_module cannot be imported: ModuleNotFoundError: No module named"),
        ("@/nowhere.py:f", [], "nowhere.py does not exist; give module:callable or path/to/file.py:callable"),
        ("@:nothing", [], "map_functions.py has no nothing; its callables are: Counter, bad, factory, motion"),
        ("@:CONSTANT", [], "has an object that is not callable as CONSTANT"),
        ("@:one_argument", [], "one_argument(frames) must take (frames, info), or be a class or factory that takes no"),
        ("@:motion", ["arguments.k=1"], "motion(frames, info) must take (frames, info) and arguments={'k': 1}, or be"),
        ("@:unbuildable", [], "the function of vidvq map cannot be built: OSError: no weights (map_functions.py:50)"),
        ("@:not_a_function", [], "cannot be built: not_a_function returned int; it must return a function of"),
        ("@:motion", ["arguments.k=2024-01-01"], "arguments.k=datetime.date(2024, 1, 1): must be a JSON value"),
        ("@:motion", ["gpus=1.5"], "gpus=1.5 must be a fraction below 1, or a whole number"),
        ("@:motion", ["revision=1"], "revision=1 is not a known field"),
    ],
)
def test_usage_errors_are_one_line(function, settings, message, clips, vidvq):
    path = FUNCTIONS if function.startswith("@:") else FUNCTIONS.parent
    ran = vidvq("map", clips, "--function", function.replace("@", str(path)), *settings, INLINE)
    assert ran.code == 2 and message in ran.error


def test_a_syntax_error_and_a_wrong_directory_are_one_line(clips, tokens_dir, tmp_path, vidvq):
    (tmp_path / "broken.py").write_text("def f(:\n")
    assert "SyntaxError" in vidvq("map", clips, "--function", f"{tmp_path}/broken.py:f").error
    job = ("--function", f"{FUNCTIONS}:motion", INLINE)
    assert "takes a directory that vidvq shard wrote; got" in vidvq("map", tmp_path, *job).error
    assert "was written by vidvq tokenize" in vidvq("map", tokens_dir, *job, "--out", tmp_path / "out").error
    assert "no inputs are given" in vidvq("map", *job, "--out", tmp_path / "out").error


def test_a_function_on_two_workers_gives_the_same_bytes(clips, snapshot, tmp_path, vidvq):
    job = ["map", str(clips), "--function", f"{FUNCTIONS}:motion"]
    assert vidvq(*job, "--out", tmp_path / "inline", INLINE).code == 0
    command = [sys.executable, "-m", "vidvq", *job, "--out", str(tmp_path / "ray"), "runtime.workers=2"]
    subprocess.run(command, check=True, capture_output=True)
    assert snapshot(tmp_path / "ray") == snapshot(tmp_path / "inline")


def test_two_sets_with_a_column_of_one_name_are_refused(clips, vidvq):
    for name in ("one", "two"):
        job = ("map", clips, "--function", f"{FUNCTIONS}:motion", INLINE, "--out", clips / "columns" / name)
        assert vidvq(*job).code == 0
    with pytest.raises(ValueError, match=r"column index is in .*columns/one and in .*columns/two; move one of them"):
        read_table(clips)
