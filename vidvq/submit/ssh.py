"""Backend for hosts that ssh reaches; this machine holds the connections."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from vidvq.errors import UsageError
from vidvq.submit.detached import DetachedBackend
from vidvq.submit.hostfile import read_hostfile
from vidvq.submit.job_directory import JobDirectory
from vidvq.submit.script import make_script, template
from vidvq.submit.spec import Job


class Backend(DetachedBackend):
    """Runs the job on the hosts of a hostfile. See :class:`vidvq.submit.backend.Backend`."""

    takes = frozenset({"nodes", "cpus", "hostfile"})

    def check(self, job: Job, dry_run: bool) -> None:
        requested = job.resources
        if not requested.hostfile:
            raise UsageError("the ssh backend needs --hostfile, a file with lines of `host slots=8`")
        if not shutil.which("ssh"):
            raise UsageError("ssh is not on the path; install the OpenSSH client")
        available = len(read_hostfile(Path(requested.hostfile)))
        if requested.nodes > available:
            raise UsageError(f"nodes={requested.nodes} exceeds the {available} hosts in {requested.hostfile}")

    def files(self, job: Job, directory: JobDirectory) -> Mapping[str, str]:
        values = {
            "HOSTFILE": str(job.resources.hostfile),
            "NODES": str(job.resources.nodes),
            "PORT": str(20000 + int(job.key, 16) % 12000),
            "CPUS": str(job.resources.cpus or ""),
            "NODE_SCRIPT": str(directory.path / "node.sh"),
        }
        return {"script.sh": make_script(job, directory, "ssh.sh", values), "node.sh": template("node.sh")}
