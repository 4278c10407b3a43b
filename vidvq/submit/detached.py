"""Scripts that run on this machine and outlive the command that started them, each a process group of its own.

All processes of a job inherit one locked file, so that whether it runs is asked of the kernel, not of a number.
"""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from vidvq.submit.backend import Status
from vidvq.submit.folder import RunFolder

# The job says its number too, so that it is known though whoever started it was killed.
_START = 'echo $$ >&"$1"; exec bash "$2"'


def command(run: RunFolder) -> list[str]:
    """What :func:`start` runs."""
    return ["bash", str(run.script)]


def start(run: RunFolder) -> dict[str, Any]:
    """Start the run folder's script; its output goes to ``logs/job.log``."""
    with (run.logs / "job.log").open("ab") as log, _lock_file(run).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        number = lock.fileno()
        process = subprocess.Popen(
            ["bash", "-c", _START, "bash", str(number), str(run.script)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[number],
        )
        lock.write(f"{process.pid}\n")
    return {"pid": process.pid}


def find(run: RunFolder) -> dict[str, Any] | None:
    """The ids of what runs there, or None."""
    return {"pid": _pid(run)} if _runs(run) else None


def status(run: RunFolder) -> Status:
    """How it stands."""
    if _runs(run):
        return Status("running", f"process group {_pid(run)}")
    code = run.exit_code()
    if code == 0:
        return Status("done")
    if run.cancelled.exists():
        return Status("cancelled")
    if code is None:
        return Status("lost", "it is gone and left no exit code; was the machine restarted?")
    return Status("failed", f"exit code {code}")


def read_log(run: RunFolder, offset: int) -> bytes:
    """The output from a byte on."""
    return read_from(run.logs / "job.log", offset)


def read_from(path: Path, offset: int) -> bytes:
    """A file's bytes from an offset on; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def stop(run: RunFolder) -> None:
    """Send SIGTERM to all of it."""
    # A number stays taken as long as its group has a member, and the lock says that it has.
    if _runs(run):
        os.killpg(_pid(run), signal.SIGTERM)


def _lock_file(run: RunFolder) -> Path:
    return run.path / "running"


def _runs(run: RunFolder) -> bool:
    try:
        with _lock_file(run).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _pid(run: RunFolder) -> int:
    while not (said := _lock_file(run).read_text().split()) and _runs(run):
        time.sleep(0.01)
    return int(said[0])
