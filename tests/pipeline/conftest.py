"""Corpora and ways to stop a job."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory, make_video) -> Path:
    """Two videos that become two clips, and one that is too short."""
    folder = tmp_path_factory.mktemp("corpus")
    make_video(folder / "one.mp4", 4)
    make_video(folder / "short.mp4", 2)
    make_video(folder / "two.mkv", 4)
    return folder


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory, tiny_corpus) -> Path:
    """The clips of ``tiny_corpus`` in two shards."""
    from vidvq.cli.main import run

    out = tmp_path_factory.mktemp("tiny") / "clips"
    settings = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=1".split()
    assert run(["shard", str(tiny_corpus), "--out", str(out), *settings, "runtime.workers=0"]) == 0
    return out


@pytest.fixture
def kill_when() -> Callable[[list[str], Callable[[], bool]], int]:
    """Start `python -m vidvq ARGUMENTS` and kill -9 its whole process group once a condition holds."""

    def start_and_kill(arguments: list[str], condition: Callable[[], bool]) -> int:
        job = subprocess.Popen(
            [sys.executable, "-m", "vidvq", *arguments], start_new_session=True, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while job.poll() is None and not condition() and time.monotonic() < deadline:
            time.sleep(0.002)
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        return job.wait()

    return start_and_kill
