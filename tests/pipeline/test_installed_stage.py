"""A stage in a package of its own, found by its entry point, has all that vidvq's stages have."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from vidvq.formats.columns import read_table

EXAMPLE = Path(__file__).parents[2] / "examples/brightness_stage"
KILLER = Path(__file__).parents[1] / "helpers/killer.py"


def install(folder: Path, points: dict[str, str]) -> None:
    """What pip leaves in a folder of packages for the entry points of one."""
    info = folder / "brightness_stage-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness-stage\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[vidvq.stages]", *lines, ""]))


@pytest.fixture
def installed(tmp_path, monkeypatch) -> dict[str, str]:
    """The example, installed here and in processes that get this environment."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    install(tmp_path / "site", project["project"]["entry-points"]["vidvq.stages"])
    for path in (tmp_path / "site", EXAMPLE):
        monkeypatch.syspath_prepend(str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    return dict(os.environ)


@pytest.fixture
def clips(tmp_path, make_video, vidvq) -> Path:
    """Six clips in three shards, one of which does not decode."""
    for name, size in (("a", (32, 64)), ("b", (32, 80)), ("c", (32, 96))):
        make_video(tmp_path / f"{name}.mp4", 8, size=size)
    settings = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=2".split()
    videos = [tmp_path / f"{name}.mp4" for name in "abc"]
    out = tmp_path / "clips"
    assert vidvq("shard", *videos, "--out", out, *settings, "clip.encoding=frames", "runtime.workers=0").code == 0
    damage(out)
    return out


def damage(clips: Path) -> None:
    """Give the first clip other frames than its JSON says, in a shard that is committed as it is."""
    from vidvq.formats.tar import TarWriter, read_members
    from vidvq.storage import add_digest, sha256_file

    path, record = clips / "clips-000000.tar", clips / "commits/clips-000000.tar.json"
    members = list(read_members(path))
    with path.open("wb") as file:
        tar = TarWriter(file)
        for number, (name, data) in enumerate(members):
            media = next(at for at, (each, _) in enumerate(members) if each.endswith(".npy"))
            tar.add(name, data[:-1] if number == media else data)
        tar.close()
    found = json.loads(record.read_text())
    found |= {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    found["members"] = [[member.name, member.size, member.crc32] for member in tar.members]
    del found["digest"]
    record.write_text(json.dumps(add_digest(found)))


def test_the_example_is_as_short_as_the_documentation_says():
    assert len((EXAMPLE / "brightness_stage.py").read_text().splitlines()) <= 100


def test_the_command_is_there_and_nothing_is_imported_for_the_list_of_commands(installed, vidvq):
    sys.modules.pop("brightness_stage", None)
    assert "brightness  Stage of the package brightness-stage." in vidvq("--help").out
    assert "brightness_stage" not in sys.modules
    assert "Measure the brightness of clips" in vidvq("brightness", "--help").out


def test_it_counts_fails_resumes_retries_and_verifies(installed, clips, vidvq, snapshot):
    ran = vidvq("brightness", clips, "runtime.workers=0", "--json")
    assert ran.code == 1 and "16.7% of the items failed" in ran.err
    summary = json.loads(ran.out)
    assert (summary["planned"], summary["ok"], summary["failed"]["decode_error"]["count"]) == (6, 5, 1)
    out = clips / "columns/brightness"
    assert vidvq("verify", out).code == 0
    table = read_table(clips)
    assert len(table.rows) == 5 and table.names == {"brightness", "dark_share"}
    before = snapshot(out)
    assert vidvq("brightness", clips, "runtime.workers=0", "max_failed=1").code == 0
    assert snapshot(out) == before
    retried = vidvq("brightness", clips, "--retry-failed", "runtime.workers=0", "max_failed=1")
    assert retried.code == 0 and "1 failed item to retry" in retried.err
    assert read_table(clips).rows == table.rows and vidvq("verify", out).code == 0
    assert "dark was 0.1, now 0.5" in vidvq("brightness", clips, "dark=0.5", "runtime.workers=0").error


# By default, test_kill_and_resume.py kills the stages of vidvq, which run in the same job.
@pytest.mark.slow
def test_killed_before_its_file_operations_it_resumes_to_the_same_bytes(installed, clips, tmp_path, snapshot):
    arguments = ["brightness", str(clips), "--out", "@OUT", "max_failed=1", "runtime.workers=0"]
    # Python puts the folder of a script first, not the current one.
    done = subprocess.run(
        [sys.executable, str(KILLER), "kill/8", str(tmp_path / "runs"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=installed,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert set(codes) == {0} and len(codes) > 4
    outs = [tmp_path / "runs" / str(8 * turn) / "out" for turn in range(len(codes))]
    whole = snapshot(outs[-1])
    assert sum(name.endswith(".tar") for name in whole) == 3
    for out in outs:
        assert snapshot(out) == whole, out


@pytest.mark.slow
def test_killed_at_random_on_two_workers_it_resumes_to_the_same_bytes(installed, clips, tmp_path, snapshot, vidvq):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert vidvq("brightness", clips, "--out", whole, "max_failed=1", "runtime.workers=0").code == 0
    command = [sys.executable, "-m", "vidvq", "brightness", str(clips), "--out", str(out), "max_failed=1"]
    job = subprocess.Popen(
        [*command, "runtime.workers=2"], start_new_session=True, stderr=subprocess.DEVNULL, env=installed
    )
    wanted = random.Random().randrange(1, 3)
    deadline = time.monotonic() + 300
    while job.poll() is None and len(list((out / "commits").glob("*.tar.json"))) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    last = subprocess.run([*command, "runtime.workers=2"], check=False, capture_output=True, text=True, env=installed)
    assert last.returncode == 0, last.stderr
    assert snapshot(out) == snapshot(whole)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lost", "no_such_module:Stage", "of the package brightness-stage cannot be imported: ModuleNotFoundError"),
        ("lost", "brightness_stage:Nothing", "cannot be imported: AttributeError"),
        ("wrong", "brightness_stage:BrightnessConfig", "must be a subclass of vidvq.jobs.Stage"),
        ("half", "vidvq.jobs:ClipFunctionStage", "must be a subclass of vidvq.jobs.Stage"),
        ("bright", "brightness_stage:BrightnessStage", "has the name 'brightness'; its entry point must have the same"),
    ],
)
def test_a_wrong_entry_point_is_one_line(name, value, message, tmp_path, monkeypatch, clips_dir, vidvq):
    install(tmp_path / "site", {name: value})
    for path in (tmp_path / "site", EXAMPLE):
        monkeypatch.syspath_prepend(str(path))
    ran = vidvq(name, clips_dir, "--out", tmp_path / "out")
    assert ran.code == 2 and message in ran.error


def test_a_name_of_vidvqs_own_cannot_be_taken(tmp_path, monkeypatch, vidvq):
    install(tmp_path / "site", {"shard": "brightness_stage:BrightnessStage"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "Cut VIDEOS into WebDataset shards" in vidvq("shard", "--help").out
