"""Backends whose jobs run on this machine and outlive the command that started them, one process group per job.

All processes of a job inherit a locked file, so the kernel answers whether the job runs; process ids can be reused.
"""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, ClassVar

from vidvq.submit.backend import Status
from vidvq.submit.run_folder import RunFolder
from vidvq.submit.spec import Job

# The job records its own process id, so that it is known even if the process that started it was killed.
_START = 'echo $$ >&"$1"; exec bash "$2"'


class DetachedBackend:
    """Base class: runs the run folder's ``script.sh`` in a new session; subclasses write that script.

    See :class:`vidvq.submit.backend.Backend` for the methods.
    """

    takes: ClassVar[frozenset[str]]

    def check(self, job: Job, dry_run: bool) -> None:
        pass

    def command(self, job: Job, run: RunFolder) -> list[str]:
        return ["bash", str(run.script)]

    def find(self, job: Job, run: RunFolder, attempt: int) -> dict[str, Any] | None:
        return {"pid": _pid(run)} if _is_running(run) else None

    def submit(self, job: Job, run: RunFolder, attempt: int) -> dict[str, Any]:
        """Start the script; its output is appended to ``logs/job.log``."""
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

    def status(self, run: RunFolder, ids: dict[str, Any]) -> Status:
        if _is_running(run):
            return Status("running", f"process group {_pid(run)}")
        code = run.exit_code()
        if code == 0:
            return Status("done")
        if run.cancelled.exists():
            return Status("cancelled")
        if code is None:
            return Status("lost", "it ended without an exit code; was the machine restarted?")
        return Status("failed", f"exit code {code}")

    def log(self, run: RunFolder, ids: dict[str, Any], offset: int) -> bytes:
        return read_from(run.logs / "job.log", offset)

    def cancel(self, run: RunFolder, ids: dict[str, Any]) -> None:
        """Send SIGTERM to the process group."""
        # A held lock proves that the group has a member, and its id is not reused while it has one.
        if _is_running(run):
            os.killpg(_pid(run), signal.SIGTERM)


def read_from(path: Path, offset: int) -> bytes:
    """Read a file from a byte offset to its end; empty if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def _lock_file(run: RunFolder) -> Path:
    return run.path / "running"


def _is_running(run: RunFolder) -> bool:
    try:
        with _lock_file(run).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _pid(run: RunFolder) -> int:
    while not (recorded := _lock_file(run).read_text().split()) and _is_running(run):
        time.sleep(0.01)
    return int(recorded[0])
