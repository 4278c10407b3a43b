"""Calls in a child of a worker of Ray: how the child ended is told, and it does not outlive the worker."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vidvq.runtime import isolated
from vidvq.runtime.interface import WorkerDied
from vidvq.runtime.isolated import call_in_child

OUTLIVING = """
import pickle, sys, time
from vidvq.runtime.isolated import call_in_child
call_in_child(pickle.dumps((exec, "import os, pathlib, time; "
    f"pathlib.Path({sys.argv[1]!r}).write_text(str(os.getpid())); time.sleep(600)")), 600)
"""


def call(code: str, deadline_s: float = 60) -> object:
    return call_in_child(pickle.dumps((exec, code)), deadline_s)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "killed"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "died"),
        ("import os; os._exit(7)", "died"),
    ],
)
def test_a_kill_is_told_from_a_crash(code, cause):
    death = call(code)
    assert isinstance(death, WorkerDied) and death.cause == cause
    assert call_in_child(pickle.dumps((len, "alive")), 60) == 5


def test_a_death_after_the_result_is_one_of_the_call(monkeypatch):
    death = WorkerDied("x", "killed")
    monkeypatch.setattr(isolated, "_feeder", SimpleNamespace(feed=lambda *_: iter([5, death])))
    assert call_in_child(b"", 60) == death


def test_a_call_ends_at_its_deadline():
    death = call("import time; time.sleep(600)", deadline_s=1)
    assert isinstance(death, WorkerDied) and death.cause == "died"


def test_exceptions_keep_their_type():
    with pytest.raises(ZeroDivisionError):
        call("1 // 0")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child ends after its call")
def test_a_child_ends_with_its_parent_in_the_middle_of_a_call(tmp_path):
    marker = tmp_path / "child"
    with subprocess.Popen([sys.executable, "-c", OUTLIVING, str(marker)]) as parent:
        while not marker.exists() or not marker.read_text():
            assert parent.poll() is None
            time.sleep(0.02)
        parent.send_signal(signal.SIGKILL)
    child = int(marker.read_text())
    while is_running(child):
        time.sleep(0.02)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
