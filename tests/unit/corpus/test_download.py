"""Downloads have a time limit of their own; that of the decode does not run meanwhile."""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.helpers.http_server import QuietHandler, serve
from vidvq.corpus.download import TooSlow, call_within, open_within
from vidvq.corpus.fetch import local_file
from vidvq.corpus.lists import ListPolicy, read_list
from vidvq.corpus.source import Source
from vidvq.corpus.tars import read_tar
from vidvq.errors import StoreError
from vidvq.storage import resolve_path
from vidvq.video import VideoError
from vidvq.video.limits import Limits


@pytest.fixture(params=["silent", "dripping"])
def slow(request) -> Iterator[str]:
    """A server that answers, and then sends nothing, or a byte now and then."""
    over = threading.Event()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            while self.command == "GET" and not over.wait(0.05):
                if request.param == "dripping":
                    self.wfile.write(b"x")
                    self.wfile.flush()

    with serve(Handler) as url:
        yield f"{url}/a"
        over.set()


def test_a_slow_download_fails_with_its_own_reason(slow):
    with (
        pytest.raises(VideoError, match=r"limits.download_deadline_s=1 ") as error,
        local_file(Source(f"{slow}.mp4"), Limits(download_deadline_s=1), allow_private=True),
    ):
        pass
    assert error.value.reason == "fetch_failed(too_slow)"


@pytest.mark.parametrize("suffix", ["txt", "csv", "tar"])
def test_a_slow_list_stops_the_job(slow, suffix):
    path = resolve_path(f"{slow}.{suffix}")
    with pytest.raises(StoreError, match=r"does not answer within limits.download_deadline_s=0.5"):
        if suffix == "tar":
            list(read_tar(path, (), (".mp4",), Counter(), 0.5))
        else:
            list(read_list(path, ListPolicy(), Counter(), 0.5))


def test_results_and_errors_pass_and_a_local_file_is_opened_as_it_is(tmp_path):
    assert call_within(60, max, 1, 2) == 2 and call_within(60, list[int].clear, [1]) is None
    with pytest.raises(KeyError):
        call_within(60, {}.__getitem__, "x")
    with pytest.raises(TooSlow):
        call_within(0.01, threading.Event().wait, 60)
    (tmp_path / "a").write_bytes(b"abc")
    with open_within(tmp_path / "a", 0.001) as file:
        assert file.read() == b"abc"


WATCHED = """
import time
from vidvq.watchdog import exit_after, pause
with exit_after({limit}):
    with pause({pause}):
        time.sleep({paused})
    {then}
print("alive")
"""


@pytest.mark.parametrize(
    ("limit", "pause", "paused", "then", "lives"),
    [
        (20, 60, 0, "pass", True),
        (0.5, 60, 1, "pass", True),
        (60, 0.5, 60, "pass", False),
        (1, 60, 0, "time.sleep(60)", False),
    ],
)
def test_a_pause_has_a_limit_of_its_own(limit, pause, paused, then, lives):
    code = WATCHED.format(limit=limit, pause=pause, paused=paused, then=then)
    began = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout == "alive\n") == lives, ran.stderr
    assert (ran.returncode == 0) == lives and time.monotonic() - began < 55
