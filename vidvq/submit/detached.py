"""Backends whose jobs run on this machine and outlive the command that started them, one process group per job.

All processes of a job inherit a locked file, so the kernel answers whether the job runs; process ids can be reused.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from vidvq.submit.backend import Status
from vidvq.submit.job_directory import JobDirectory
from vidvq.submit.spec import Job

# The job records its own process id, so that it is known even if the process that started it was killed.
_START = 'echo $$ >&"$1"; exec bash "$2"'


class DetachedBackend:
    """Base class: runs the job directory's ``script.sh`` in a new session; subclasses write that script.

    See :class:`vidvq.submit.backend.Backend` for the methods.
    """

    takes: ClassVar[frozenset[str]]

    def check(self, job: Job, dry_run: bool) -> None:
        pass

    def command(self, job: Job, directory: JobDirectory) -> list[str]:
        return ["bash", str(directory.script)]

    def find(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any] | None:
        return {"pid": _pid(directory)} if _is_running(directory) else None

    def submit(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any]:
        """Start the script; its output is appended to ``logs/job.log``."""
        with (directory.logs / "job.log").open("ab") as log, _lock_file(directory).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            number = lock.fileno()
            process = subprocess.Popen(
                ["bash", "-c", _START, "bash", str(number), str(directory.script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[number],
            )
            lock.write(f"{process.pid}\n")
        return {"pid": process.pid}

    def status(self, directory: JobDirectory, ids: dict[str, Any]) -> Status:
        if _is_running(directory):
            return Status("running", f"process group {_pid(directory)}")
        code = directory.exit_code()
        if code == 0:
            return Status("done")
        if directory.cancelled.exists():
            return Status("cancelled")
        if code is None:
            return Status("lost", "it ended without an exit code; was the machine restarted?")
        return Status("failed", f"exit code {code}")

    def log(self, directory: JobDirectory, ids: dict[str, Any], seen: Counter[str]) -> dict[str, bytes]:
        return read_rest(directory.logs / "job.log", seen)

    def cancel(self, directory: JobDirectory, ids: dict[str, Any]) -> None:
        """Send SIGTERM to the process group."""
        # A held lock proves that the group has a member, and its id is not reused while it has one.
        if _is_running(directory):
            os.killpg(_pid(directory), signal.SIGTERM)


def read_rest(path: Path, seen: Counter[str]) -> dict[str, bytes]:
    """Read the rest of a log file, which may not exist yet; see :meth:`vidvq.submit.backend.Backend.log`."""
    try:
        with path.open("rb") as file:
            file.seek(seen[path.name])
            rest = file.read()
    except FileNotFoundError:
        return {}
    return {path.name: rest} if rest else {}


def _lock_file(directory: JobDirectory) -> Path:
    return directory.path / "running"


def _is_running(directory: JobDirectory) -> bool:
    try:
        with _lock_file(directory).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _pid(directory: JobDirectory) -> int:
    while not (recorded := _lock_file(directory).read_text().split()) and _is_running(directory):
        time.sleep(0.01)
    return int(recorded[0])
