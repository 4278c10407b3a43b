"""Hosts that ssh reaches: this machine keeps the connections, in a process group that outlives the command."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidvq.errors import UsageError
from vidvq.submit import detached
from vidvq.submit.backend import Status
from vidvq.submit.folder import RunFolder
from vidvq.submit.hostfile import read_hostfile
from vidvq.submit.job import Job
from vidvq.submit.script import make_script, template


class Backend:
    """See :class:`vidvq.submit.backend.Backend`."""

    takes = frozenset({"nodes", "cpus", "hostfile"})

    def check(self, job: Job, dry_run: bool) -> None:
        """See the protocol."""
        asked = job.resources
        if not asked.hostfile:
            raise UsageError("the backend ssh needs --hostfile, lines of `host slots=8`")
        if not shutil.which("ssh"):
            raise UsageError("ssh is not on the path; install OpenSSH's client")
        there = len(read_hostfile(Path(asked.hostfile)))
        if asked.nodes > there:
            raise UsageError(f"nodes={asked.nodes} are more than the {there} hosts of {asked.hostfile}")

    def files(self, job: Job, run: RunFolder) -> Mapping[str, str]:
        """See the protocol."""
        values = {
            "HOSTFILE": str(job.resources.hostfile),
            "NODES": str(job.resources.nodes),
            "PORT": str(20000 + int(job.key, 16) % 12000),
            "CPUS": str(job.resources.cpus or ""),
            "NODE_SCRIPT": str(run.path / "node.sh"),
        }
        return {"script.sh": make_script(job, run, "ssh.sh", values), "node.sh": template("node.sh")}

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
