"""This machine: the job is a process group of its own that outlives the command."""

from collections.abc import Mapping
from typing import Any

from vidvq.submit import detached
from vidvq.submit.backend import Status
from vidvq.submit.folder import RunFolder
from vidvq.submit.job import Job
from vidvq.submit.script import make_script


class Backend:
    """See :class:`vidvq.submit.backend.Backend`."""

    takes = frozenset({"gpus"})

    def check(self, job: Job, dry_run: bool) -> None:
        """See the protocol."""

    def files(self, job: Job, run: RunFolder) -> Mapping[str, str]:
        """See the protocol."""
        values = {"NPROC": str(job.processes), "GPUS": str(job.resources.gpus)}
        return {"script.sh": make_script(job, run, "node.sh", values)}

    def command(self, job: Job, run: RunFolder) -> list[str]:
        """See the protocol."""
        return detached.command(run)

    def find(self, job: Job, run: RunFolder, attempt: int) -> dict[str, Any] | None:
        """See the protocol."""
        return detached.find(run)

    def submit(self, job: Job, run: RunFolder, attempt: int) -> dict[str, Any]:
        """See the protocol."""
        return detached.start(run)

    def status(self, run: RunFolder, ids: dict[str, Any]) -> Status:
        """See the protocol."""
        return detached.status(run)

    def log(self, run: RunFolder, ids: dict[str, Any], offset: int) -> bytes:
        """See the protocol."""
        return detached.read_log(run, offset)

    def cancel(self, run: RunFolder, ids: dict[str, Any]) -> None:
        """See the protocol."""
        detached.stop(run)
