"""One corpus, killed with SIGKILL at random twenty times and more, on one, two and three workers."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import psutil
import pytest

CLIPS = "clip.num_frames=8 clip.min_frames=4 clip.short_side=64 clip.multiple=8 clips_per_shard=1".split()
VIDEOS = "video.short_side=256 video.multiple=8 gop_frames=5 items_per_shard=1".split()
KILLS = 20


def job_of(kind: str, videos: Path, request) -> list[str]:
    """A command line that makes many shards: ``shard``, or ``tokenize`` from ``clips`` or from ``videos``."""
    if kind == "shard":
        return ["shard", str(videos), *CLIPS]
    settings = ["--checkpoint", str(request.getfixturevalue("checkpoint_dir"))]
    if kind == "videos":
        return ["tokenize", str(videos), *settings, *VIDEOS]
    clips = request.getfixturevalue("tmp_path") / "clips"
    sizes = [setting.replace("short_side=64", "short_side=256").replace("frames=8", "frames=5") for setting in CLIPS]
    assert request.getfixturevalue("vidvq")("shard", videos, "--out", clips, *sizes, "runtime.workers=0").code == 0
    return ["tokenize", str(clips), *settings]


def committed(out: Path) -> int:
    return len(list((out / "commits").glob("*.tar.json")))


def helpers(job: subprocess.Popen, kind: str) -> list[psutil.Process]:
    """The processes of a job that run its tasks (``worker``), or that decode for those (``decoder``)."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(job.pid).children(recursive=True):
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                worker = command.startswith("ray::") and "IDLE" not in command and "Agent" not in command
                if worker if kind == "worker" else "vidvq.runtime.feed" in command:
                    found.append(process)
    return found


def start_and_kill(command: list[str], out: Path, kinds: list[str], dice: random.Random) -> list[str]:
    """Start a job, kill one helper of each of ``kinds`` while it runs, then the driver; returns what was killed."""
    killed = []
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    for kind in (*kinds, "driver"):
        wanted = max(committed(out) + dice.randrange(0, 3), 1)
        while process.poll() is None and committed(out) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.random() * 0.1)
        assert process.poll() is None, "the job ended before it could be killed often enough"
        if kind != "driver":
            # A driver that goes on may have none yet.
            while not (found := helpers(process, kind)) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if found:
                with suppress(psutil.Error):
                    dice.choice(found).kill()
                    killed.append(kind)
        elif dice.random() < 0.5:
            os.kill(process.pid, signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [*killed, "driver"]


def check_finished(command: list[str], out: Path, whole: Path, snapshot) -> None:
    """Run a job to its end: it had some left to do, and makes what one that nobody disturbed has made."""
    assert 0 < committed(out) < committed(whole), "the kills fell on unfinished work"
    last = subprocess.run(command, check=False, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    time.sleep(2)  # what the killed drivers' workers still write, if anything
    assert snapshot(out) == snapshot(whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["shard", "clips", "videos"])
def test_twenty_kills_at_random_change_not_one_byte(kind, workers, request, demo_videos, tmp_path, snapshot, vidvq):
    job = job_of(kind, demo_videos / "train", request)
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert vidvq(*job, "--out", whole, "runtime.workers=0").code == 0
    command = [sys.executable, "-m", "vidvq", *job, "--out", str(out), f"runtime.workers={workers}"]
    dice, killed = random.Random(workers), Counter()
    for kinds in cycle([["worker"], []] if kind == "shard" else [["worker"], ["decoder"], ["decoder", "worker"], []]):
        # A driver of one worker is that worker.
        some = [each for each in kinds if each != "worker" or workers > 1]
        killed.update(start_and_kill(command, out, some, dice))
        if killed.total() >= KILLS:
            break
    check_finished(command, out, whole, snapshot)
    assert (workers == 1 or killed["worker"] >= 2) and (kind == "shard" or killed["decoder"] >= 2)
    print(f"{kind}, {workers} workers: {dict(killed)} killed, {committed(out)} shards")


# By default, tests/pipeline/test_kill_and_resume.py kills a driver, and test_machine_failures.py a decoder.
@pytest.mark.slow
def test_a_decoder_a_worker_and_the_driver_killed_change_no_token(request, demo_videos, tmp_path, snapshot, vidvq):
    job = job_of("videos", demo_videos / "train/box.mp4", request)
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert vidvq(*job, "--out", whole, "runtime.workers=0").code == 0
    command = [sys.executable, "-m", "vidvq", *job, "--out", str(out), "runtime.workers="]
    killed = start_and_kill([*command[:-1], command[-1] + "2"], out, ["decoder", "worker"], random.Random(0))
    assert killed == ["decoder", "worker", "driver"]
    check_finished([*command[:-1], command[-1] + "0"], out, whole, snapshot)
