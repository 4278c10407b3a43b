"""Ray that does not start or respond gives a one-line error with a remedy, in bounded time."""

import ctypes
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vidvq.errors import StoreError
from vidvq.runtime import ray_start


def shard(out: Path, *settings: str, before: str = "") -> subprocess.CompletedProcess:
    """Run `vidvq shard` in a process, after the code ``before``."""
    video = next((Path(ray_start.__file__).parents[1] / "demo/videos/train").glob("*.mp4"))
    script = (
        f"import sys\nfrom vidvq.cli.main import run\n{before}\nsys.exit(run({['shard', str(video)]!r} + sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "--out", str(out), *settings]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def line_of(ran: subprocess.CompletedProcess) -> str:
    """The only line on stderr of a job that failed with exit code 1."""
    assert ran.returncode == 1, ran.stderr
    assert ran.stdout == ""
    # Inputs are listed before Ray is needed, and its start takes seconds.
    (line,) = [line for line in ran.stderr.splitlines() if not line.startswith(("list: ", "starting Ray, "))]
    return line


@contextmanager
def server(answer: bytes | None) -> Iterator[int]:
    """Run a server that accepts connections, sends ``answer`` and waits; None closes them. Yields its port."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                if answer is None:
                    connection.close()
                    continue
                connection.sendall(answer)
                connections.append(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
    for connection in connections:
        connection.close()


def test_an_address_where_nothing_listens(tmp_path):
    line = line_of(shard(tmp_path, "runtime.address=127.0.0.1:1"))
    assert line.startswith("vidvq: the Ray cluster at 127.0.0.1:1 cannot be reached: ")
    assert "check that it is up" in line


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(b"", "timed out"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "another service than Ray"), (None, "")],
    ids=["silence", "another protocol", "a closed door"],
)
def test_an_address_where_something_else_listens(tmp_path, answer, problem):
    with server(answer) as port:
        line = line_of(shard(tmp_path, f"runtime.address=127.0.0.1:{port}"))
    assert f"127.0.0.1:{port} cannot be reached: " in line
    assert problem in line


@pytest.mark.parametrize("program", ["GCS_SERVER", pytest.param("RAYLET", marks=pytest.mark.slow)])
def test_ray_processes_that_exit_at_once(tmp_path, program):
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    before = f"import ray._private.services as s; s.{program}_EXECUTABLE = {str(fake)!r}\n"
    before += "from vidvq.runtime import ray_start; ray_start._TRIES = 1"
    line = line_of(shard(tmp_path / "out", "runtime.workers=2", before=before))
    assert line.startswith("vidvq: Ray does not start on this machine: ")
    assert "set runtime.workers=0" in line


def test_ray_that_starts_too_slowly(tmp_path):
    before = "from vidvq.runtime import ray_start; ray_start.START_LIMIT_S = 0.5"
    line = line_of(shard(tmp_path / "out", "runtime.workers=2", before=before))
    assert "it did not start within 0.5 s" in line


def test_the_time_limit_is_not_swallowed_by_broad_handlers(monkeypatch):
    monkeypatch.setattr(ray_start, "_REPEAT_S", 0.1)
    before = signal.getsignal(signal.SIGALRM)
    raised = 0
    with pytest.raises(ray_start._StartTimeout), ray_start._time_limit(0.1):
        while True:
            try:
                time.sleep(60)
            except BaseException:
                raised += 1
                if raised == 2:
                    raise
    assert raised == 2
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


class SlowNode:
    """As Ray's class of this kind: its constructor starts processes, and fails if they take too long."""

    def __init__(self, failures: list[str], ended: list[str]) -> None:
        self._ended = ended
        if failures:
            raise Exception(failures.pop())

    def kill_all_processes(self, **_: object) -> None:
        self._ended.append("processes")


def test_a_start_over_the_limit_of_ray_is_retried(monkeypatch):
    failures, ended = ["The current node timed out during startup."] * 2, []
    monkeypatch.setattr(ray_start.ray, "init", lambda **_: SlowNode(failures, ended))
    ray_start._start_here(2)
    assert not failures
    assert ended == ["processes"] * 2


@pytest.mark.parametrize(("failure", "tries"), [("timed out during startup", 3), ("no space left", 1)])
def test_retries_of_a_start_are_limited(monkeypatch, failure, tries):
    failures = [failure] * 4
    monkeypatch.setattr(ray_start.ray, "init", lambda **_: SlowNode(failures, []))
    with pytest.raises(StoreError, match=f"Ray does not start on this machine: {failure}; "):
        ray_start._start_here(2)
    assert len(failures) == 4 - tries


def test_a_signal_while_ray_connects_reaches_our_handler(monkeypatch):
    received, ended = [], threading.Event()
    thread = threading.Thread(target=ended.wait)
    install = ctypes.CDLL(ray_start._raylet.__file__)[ray_start._INSTALL]

    def init(**_: object) -> None:
        ray_start.utils.set_sigterm_handler(lambda *_: received.append("handler of Ray"))
        install(None, ctypes.c_bool(False))
        # The system delivers a signal to any thread that does not block it.
        signal.pthread_kill(thread.ident, signal.SIGTERM)
        ended.set()
        thread.join()

    monkeypatch.setattr(ray_start.ray, "init", init)
    before, replace = signal.getsignal(signal.SIGTERM), ray_start.utils.set_sigterm_handler
    signal.signal(signal.SIGTERM, lambda *_: received.append("our handler"))
    thread.start()
    try:
        ray_start._start_here(2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ["our handler"]
    assert ray_start.utils.set_sigterm_handler is replace


def test_another_version_of_ray_is_reported(monkeypatch):
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch:\n  the cluster has Ray: 2.1")

    monkeypatch.setattr(ray_start.ray, "init", init)
    with pytest.raises(StoreError, match=r"auto cannot be reached: Version mismatch: the cluster has Ray: 2.1; .* Ray"):
        ray_start._join("auto")
