"""Copies that processes share: made once, deleted by the last, and never left to others."""

import os
import signal
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from tests.helpers.http_server import QuietHandler, serve
from vidvq.corpus.fetch import local_file
from vidvq.corpus.source import Source
from vidvq.storage import shared_copy, sweep
from vidvq.video import VideoError
from vidvq.video.limits import Limits

CONTENT = b"video" * 1000
DIGEST = sha256(CONTENT).hexdigest()
HOLDER = """
import sys, time
from vidvq.storage import shared_copy
with shared_copy("name", lambda file: file.write(b"theirs")) as copy:
    print(copy, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"vidvq-copies-{os.getuid()}"


@pytest.fixture
def held(tmp_path):
    """A copy that another process uses, and the process."""
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        yield Path(holder.stdout.readline().strip()), holder
        holder.kill()


def write(content: bytes):
    return lambda file: file.write(content)


def test_the_last_of_several_users_deletes_the_copy(folder):
    with shared_copy("name", write(b"one")) as first:
        with shared_copy("name", lambda _: pytest.fail("copied twice")) as second:
            assert first == second == folder / "name"
        assert first.read_bytes() == b"one"
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_others_wait_for_the_copy(folder):
    started, proceed, found = threading.Event(), threading.Event(), []

    def slow(file):
        started.set()
        assert proceed.wait(60)
        file.write(b"slow")

    def use(make):
        with shared_copy("name", make) as copy:
            found.append(copy and copy.read_bytes())

    threads = [threading.Thread(target=use, args=(slow,))]
    threads[0].start()
    assert started.wait(60)
    threads += [threading.Thread(target=use, args=(write(b"another"),)) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    assert not found
    proceed.set()
    for thread in threads:
        thread.join(60)
    # One that came after all others were done makes its own.
    assert len(found) == 4 and set(found) <= {b"slow", b"another", None} and b"slow" in found
    assert not folder.exists()


def test_a_failure_is_raised_and_leaves_nothing(folder):
    def fail(file):
        file.write(b"half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), shared_copy("name", fail):
        pass
    assert not folder.exists()
    with shared_copy("name", write(b"whole")) as copy:
        assert copy.read_bytes() == b"whole"


def test_the_copy_of_a_killed_process_is_used_again(held):
    copy, holder = held
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with shared_copy("name", lambda _: pytest.fail("copied twice")) as mine:
        assert mine == copy and copy.read_bytes() == b"theirs"
    assert not copy.exists()


def test_sweeping_deletes_the_copies_of_killed_processes_only(held, folder):
    copy, holder = held
    sweep()
    assert copy.exists()
    (folder / "name.part").write_bytes(b"half")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    sweep()
    assert not folder.exists()


@pytest.mark.parametrize("how", ["open to others", "a link", "a file"])
def test_a_folder_that_others_could_change_is_not_used(folder, tmp_path, how):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if how == "a link":
        folder.symlink_to(tmp_path / "elsewhere")
    elif how == "a file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with shared_copy("name", lambda _: pytest.fail("copied there")) as copy:
        assert copy is None


def test_a_lock_file_that_is_a_link_is_not_followed(folder, tmp_path):
    folder.mkdir(mode=0o700)
    (folder / "name.lock").symlink_to(tmp_path / "target")
    with shared_copy("name", lambda _: pytest.fail("copied there")) as copy:
        assert copy is None
    assert not (tmp_path / "target").exists()


class Counting(QuietHandler):
    asked = 0

    def do_GET(self):
        type(self).asked += self.command == "GET"
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(CONTENT)


def test_planned_videos_are_downloaded_once_for_all_that_use_them_at_the_same_time(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(Counting, "asked", 0)
    with serve(Counting) as url:
        source = Source(f"{url}/a.mp4")
        with local_file(source, Limits(), True, DIGEST) as first, local_file(source, Limits(), True, DIGEST) as second:
            assert first == second == folder / DIGEST and first.read_bytes() == CONTENT
            with (
                pytest.raises(VideoError, match="limits.max_bytes=9"),
                local_file(source, Limits(max_bytes=9), True, DIGEST),
            ):
                pass
        assert Counting.asked == 1
        # Without a digest, each gets its own. One that is none is no file name.
        with local_file(source, Limits(), True) as own:
            assert own.parent == tmp_path
        with pytest.raises(VideoError, match="not the file"), local_file(source, Limits(), True, "../../escape"):
            pass
        with pytest.raises(VideoError) as error, local_file(source, Limits(), True, "0" * 64):
            pass
        assert error.value.reason == "changed_since_plan"
    assert not folder.exists()
