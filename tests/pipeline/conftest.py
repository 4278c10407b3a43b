"""Corpora, an object store, a small disk, and ways to stop a job."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def mount(*arguments: object) -> bool:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(kib)``: a file system of its own with so much room; called again, it gets more."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(kib: int) -> Path:
        option = f"size={kib}k"
        if os.path.ismount(disk):
            assert mount("-o", f"remount,{option}", disk)
        elif not mount("-t", "tmpfs", "-o", option, "none", disk):
            pytest.skip("this machine lets nobody mount a tmpfs")
        return disk

    yield resize
    if os.path.ismount(disk):
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A real S3 server on loopback, and the environment that sends every S3 client to it."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    # One that is kept from before would still ask another server.
    S3FileSystem.clear_instance_cache()
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture
def bucket(server, request) -> Any:
    """An empty bucket, by a client of another library."""
    import boto3

    name = f"b{abs(hash(request.node.name)) % 10**10}"
    return boto3.resource("s3").create_bucket(Bucket=name)


@pytest.fixture
def objects(bucket) -> Callable[[], dict[str, bytes]]:
    """Name -> content of all that is in the bucket now."""
    return lambda: {item.key: item.get()["Body"].read() for item in bucket.objects.all()}


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
