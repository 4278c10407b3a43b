"""Exit codes of real processes, one test per row of the table in docs/operations.md, also on a busy machine (slow)."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/operations.md"
SMALL = "clip.num_frames=8 clip.min_frames=4 clip.short_side=64 clip.multiple=8 clips_per_shard=1".split()
# Python ends such a thread inside of C++, which aborts the process. Imports come first, and products are long: threads
# that often return to Python starve the main thread.
NATIVE_THREADS = """
import threading, time, torch
import vidvq.cli, vidvq.inspect
torch.set_num_threads(1)
square = torch.ones(800, 800)
def multiply():
    while True:
        torch.mm(square, square)
for _ in range(2):
    threading.Thread(target=multiply, daemon=True).start()
time.sleep(0.3)
"""
LATE_SIGNAL = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
BUG = "import vidvq.inspect; vidvq.inspect.describe = lambda path: 1 // 0\n"


@pytest.fixture(scope="module", params=["idle", pytest.param("busy", marks=pytest.mark.slow)])
def machine(request) -> Iterator[str]:
    """A machine as it is, or with two busy processes per core."""
    count = 2 * (os.cpu_count() or 1) if request.param == "busy" else 0
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield request.param
    for process in busy:
        process.kill()
        process.wait()


def start(*arguments: object, before: str = "") -> subprocess.Popen:
    """Start a command line in a process and session of its own, after the code ``before``."""
    # Shells start background processes with SIGINT ignored, which children inherit.
    signals = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = f"{signals}{before}from vidvq.cli import main\nmain()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("code", "arguments", "before"),
    [
        (0, ("config", "shard"), ""),
        (0, ("config", "shard"), LATE_SIGNAL),
        (1, ("shard", "text.mp4", "--out", "out", "runtime.workers=0"), ""),
        (2, ("inspect", "missing"), ""),
        (2, ("inspect", "missing"), NATIVE_THREADS),
        (70, ("inspect", "text.mp4"), BUG),
    ],
)
def test_a_process_ends_with_the_documented_code(tmp_path, code, arguments, before):
    (tmp_path / "text.mp4").write_text("no video")
    command = [tmp_path / name if name in {"text.mp4", "out", "missing"} else name for name in arguments]
    with start(*command, before=before) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert bool(err) == bool(code)


def test_closed_outputs_are_no_error():
    command = [sys.executable, "-c", "import sys; from vidvq.cli import main; main()", "config", "shard"]
    done = subprocess.run(["bash", "-c", 'exec "$@" >&-', "bash", *command], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("code", "number", "workers", "everyone"),
    [
        (130, signal.SIGINT, 0, False),
        (143, signal.SIGTERM, 0, False),
        (143, signal.SIGTERM, 2, False),
        # As schedulers do: Ray's processes receive it too.
        (143, signal.SIGTERM, 2, True),
    ],
)
def test_a_signal_gives_its_code_and_one_line(tmp_path, demo_videos, code, number, workers, everyone):
    out = tmp_path / "out"
    with start("shard", demo_videos / "train", "--out", out, *SMALL, f"runtime.workers={workers}") as process:
        while not list(out.glob("commits/*.json")):
            assert process.poll() is None
            time.sleep(0.02)
        (os.killpg if everyone else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    last = err.splitlines()[-1]
    assert re.fullmatch(r"vidvq: (terminated|interrupted); run the same command again to resume", last)
    assert "Traceback" not in err and "***" not in err


def test_the_table_has_these_codes_alone():
    section = PAGE.read_text().split("## Exit codes")[1].split("\n## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) ", section, re.MULTILINE)] == [0, 1, 2, 70, 130, 143]
