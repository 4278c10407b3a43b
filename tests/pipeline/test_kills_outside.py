"""What a job that was killed leaves outside of its output; and decoders that are killed from outside."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.http_server import QuietHandler, serve
from vidvq.corpus.frames import ClipFrames, DecodeMessage, VideoFrames, decode_items
from vidvq.runtime import deaths

SETTINGS = ("clip.num_frames=4", "clip.min_frames=4", "clip.short_side=32", "lists.allow_private=true")
INLINE = "runtime.workers=0"


@pytest.fixture
def stalled(tmp_path, make_video) -> Iterator[tuple[str, threading.Event]]:
    """The URL of a video whose second half comes once an event is set."""
    data = make_video(tmp_path / "served.mp4", 8).read_bytes()
    go_on = threading.Event()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[: len(data) // 2])
                go_on.wait()
                self.wfile.write(data[len(data) // 2 :])

    with serve(Handler) as url:
        yield f"{url}/v.mp4", go_on
        go_on.set()


def test_the_copies_of_a_killed_job_are_deleted_by_the_next(stalled, tmp_path):
    url, go_on = stalled
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    job = [sys.executable, "-m", "vidvq", "shard", url, "--out", str(tmp_path / "out"), *SETTINGS, INLINE]
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(job, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while not list(temporary.glob("vidvq-copy.tmp.*")):
            assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert list(temporary.glob("vidvq-copy.tmp.*"))
    go_on.set()
    done = subprocess.run(job, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(temporary.glob("vidvq-*"))


def decode_or_be_killed(job: ClipFrames | VideoFrames) -> Iterator[DecodeMessage]:
    """Decode, and be killed by another process on items whose keys end in ``-00002``."""
    for message in decode_items(job):
        if message.key.endswith("-00002"):
            os.kill(os.getpid(), signal.SIGKILL)
        yield message


def test_a_clip_whose_decoder_is_killed_is_not_blamed_and_can_be_retried(
    clips_dir, checkpoint_dir, tokens_dir, tmp_path, vidvq, monkeypatch
):
    pauses: list[float] = []
    out: Path = tmp_path / "out"
    job = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, INLINE)
    with monkeypatch.context() as patch:
        patch.setattr("vidvq.tokenize.decoders.decode_items", decode_or_be_killed)
        patch.setattr(deaths, "sleep", pauses.append)
        assert vidvq(*job).code == 1
    failed = json.loads((out / "summary.json").read_bytes())["failed"]
    assert list(failed) == ["killed"] and [pause for pause in pauses if pause >= 1][:5] == [1, 2, 4, 8, 16]
    assert vidvq(*job, "--retry-failed").code == 0
    assert vidvq("verify", out).code == 0
