"""This machine: the job is a process group of its own that outlives the command."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from vidvq.submit.backend import Status
from vidvq.submit.folder import RunFolder
from vidvq.submit.job import Job
from vidvq.submit.script import make_script


class Backend:
    """See :class:`vidvq.submit.backend.Backend`."""

    def check(self, job: Job) -> None:
        """See the protocol."""
        if job.resources.nodes != 1:
            raise ValueError(f"nodes={job.resources.nodes} cannot be had here; the local backend is this one machine")
        if job.resources.queue or job.resources.time:
            raise ValueError("the local backend has no queue and no time limit; leave --queue and --time out")

    def script(self, job: Job, run: RunFolder) -> str:
        """See the protocol."""
        return make_script(job, run, "local.sh", [], {"NPROC": str(max(job.resources.gpus, 1))})

    def command(self, job: Job, run: RunFolder) -> list[str]:
        """See the protocol."""
        return ["bash", str(run.script)]

    def find(self, job: Job) -> dict[str, Any] | None:
        """See the protocol. A process says nothing of the job it belongs to."""
        return None

    def submit(self, job: Job, run: RunFolder) -> dict[str, Any]:
        """See the protocol."""
        with self.log_file(run, {}).open("ab") as log:
            process = subprocess.Popen(
                self.command(job, run), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return {"pid": process.pid, "started": _started(process.pid)}

    def status(self, run: RunFolder, ids: dict[str, Any]) -> Status:
        """See the protocol."""
        if _started(ids["pid"]) == ids["started"]:
            return Status("running", f"pid {ids['pid']}")
        code = run.exit_code()
        if (run.path / "cancelled").exists() and code != 0:
            return Status("cancelled")
        if code is None:
            return Status("lost", f"pid {ids['pid']} is gone and left no exit code; was the machine restarted?")
        return Status("failed" if code else "done", f"exit code {code}")

    def log_file(self, run: RunFolder, ids: dict[str, Any]) -> Path:
        """See the protocol."""
        return run.logs / "job.log"

    def cancel(self, run: RunFolder, ids: dict[str, Any]) -> None:
        """See the protocol."""
        (run.path / "cancelled").touch()
        if _started(ids["pid"]) == ids["started"]:
            os.killpg(ids["pid"], signal.SIGTERM)


def _started(pid: int) -> str | None:
    """When a process started, so that another one of the same number is not taken for it; None where it has ended."""
    asked = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    told = subprocess.run(asked, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    state, _, started = told.stdout.strip().partition(" ")
    return started.strip() if state and not state.startswith("Z") else None
