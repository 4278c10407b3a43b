"""An operator's nightmare: one corpus, kill -9 at random twenty times and more, on one, two and three workers."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

SETTINGS = "clip.num_frames=8 clip.min_frames=4 clip.short_side=64 clip.multiple=8 clips_per_shard=1".split()
KILLS = 20


def committed(out: Path) -> int:
    return len(list((out / "commits").glob("*.tar.json")))


def ray_workers(job: subprocess.Popen) -> list[psutil.Process]:
    """The processes of a job that run its tasks."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(job.pid).children(recursive=True):
            with suppress(psutil.Error):
                if (
                    process.cmdline()
                    and process.cmdline()[0].startswith("ray::")
                    and "IDLE" not in process.cmdline()[0]
                ):
                    found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_twenty_kills_at_random_change_not_one_byte(workers, demo_videos, tmp_path, snapshot, vidvq):
    dice = random.Random(workers)
    job = ["shard", str(demo_videos / "train"), *SETTINGS]
    assert vidvq(*job, "--out", tmp_path / "whole", "runtime.workers=0").code == 0
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vidvq", *job, "--out", str(out), f"runtime.workers={workers}"]
    drivers = helpers = 0
    while drivers + helpers < KILLS:
        done = committed(out)
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        wanted = done + dice.randrange(0, 3)
        while process.poll() is None and committed(out) < max(wanted, 1) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.random() * 0.3)
        assert process.poll() is None, "the job ended before it could be killed often enough"
        victims = ray_workers(process)
        if victims and dice.random() < 0.5:
            with suppress(psutil.Error):
                dice.choice(victims).kill()
                helpers += 1
            time.sleep(dice.random() * 0.3)
        if dice.random() < 0.5:
            os.kill(process.pid, signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        drivers += 1
        process.wait()
    assert committed(out) < len(list((tmp_path / "whole/commits").iterdir())), "the kills fell on unfinished work"
    last = subprocess.run(command, check=False, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    time.sleep(2)  # what the killed drivers' workers still write, if anything
    assert snapshot(out) == snapshot(tmp_path / "whole")
    print(f"{workers} workers: {drivers} drivers and {helpers} workers killed")
