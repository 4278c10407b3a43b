"""Tiny corpora, lost responses of an object store, and a job that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.warm import WarmInterpreter, warm_interpreter
from vidvq.runtime import feeder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory, make_video) -> Path:
    """Two videos of one clip each, and one that is too short."""
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


@pytest.fixture(scope="session")
def tiny_tokens(tmp_path_factory, tiny_clips, checkpoint_dir) -> Path:
    """The tokens of ``tiny_clips`` in two shards; tests must not change them."""
    from vidvq.cli.main import run

    out = tmp_path_factory.mktemp("tiny") / "tokens"
    job = ["tokenize", str(tiny_clips), "--checkpoint", str(checkpoint_dir), "--out", str(out), "runtime.workers=0"]
    assert run(job) == 0
    return out


@pytest.fixture(autouse=True)
def one_process(monkeypatch) -> None:
    """Make inline runs call functions in the process of the test, which saves half a second and respects patches.

    Tests of the child process run vidvq in a subprocess.
    """
    from vidvq.runtime import InlinePool

    def run_here(_, function, items, **options):
        return ((item, function(item)) for item in items)

    monkeypatch.setattr(InlinePool, "map", run_here)


@pytest.fixture(scope="session")
def warm_decoder() -> Iterator[WarmInterpreter]:
    """Starts commands in forks of a process that has imported what decodes video."""
    with warm_interpreter("vidvq.corpus.frames", "vidvq.runtime.feeder", "vidvq.shard.worker") as warm:
        yield warm


@pytest.fixture(autouse=True)
def warm_child_processes(monkeypatch, warm_decoder) -> None:
    """Make jobs in the process of the test start their child processes as forks, which saves half a second each.

    Those of jobs in a subprocess are started as ever.
    """
    shim = SimpleNamespace(Popen=warm_decoder.popen, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(feeder, "subprocess", shim)


@pytest.fixture
def kill_when() -> Callable[[list[str], Callable[[], bool]], int]:
    """Start `python -m vidvq ARGUMENTS` and kill -9 its whole process group once a condition holds."""

    def start_and_kill(arguments: list[str], condition: Callable[[], bool]) -> int:
        job = subprocess.Popen(
            [sys.executable, "-m", "vidvq", *arguments], start_new_session=True, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while job.poll() is None and not condition() and time.monotonic() < deadline:
            time.sleep(0.002)
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        return job.wait()

    return start_and_kill


@pytest.fixture
def lose_answers(monkeypatch) -> Callable[[str], list[str]]:
    """``lose_answers(part)``: the first put of each object with this in its name happens, but seems to have failed.

    Returns the list of those objects, which grows.
    """
    from s3fs import S3FileSystem

    real = S3FileSystem._call_s3

    def begin(part: str) -> list[str]:
        lost: list[str] = []

        async def call(self, method, *arguments, **options):
            answer = await real(self, method, *arguments, **options)
            key = options.get("Key", "")
            if method == "put_object" and part in key and key not in lost:
                lost.append(key)
                raise OSError(f"the answer for {key} was lost")
            return answer

        monkeypatch.setattr(S3FileSystem, "_call_s3", call)
        monkeypatch.setattr("vidvq.storage.objects._PAUSE_S", 0)
        return lost

    return begin
