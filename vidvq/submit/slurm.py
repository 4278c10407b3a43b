"""Backend for Slurm: a job or a job array with one task per node, which requeues itself at its time limit."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vidvq.errors import StoreError, UsageError
from vidvq.log import warn
from vidvq.submit.backend import Status
from vidvq.submit.detached import read_rest
from vidvq.submit.job_directory import JobDirectory
from vidvq.submit.script import make_script, template
from vidvq.submit.spec import Job

# Time between the signal and the limit. Slurm may send the signal up to a minute early.
_NOTICE_S = 120
_WAITING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SUSPENDED",
    "SPECIAL_EXIT",
    "RESIZING",
}
_RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED"}


class Backend:
    """Submits the job with sbatch. See :class:`vidvq.submit.backend.Backend`."""

    takes = frozenset({"nodes", "gpus", "cpus", "time", "array", "queue"})

    def check(self, job: Job, dry_run: bool) -> None:
        if not shutil.which("sbatch"):
            if dry_run:
                return
            raise UsageError("sbatch is not on the path; submit from a node of the Slurm cluster")
        try:
            partitions = _run("sinfo", "--noheader", "--format=%P|%D")
        except StoreError as error:
            if not dry_run:
                raise
            warn(f"{error}; the partition and the number of nodes are not checked")
            return
        sizes: dict[str, int] = {}
        default = None
        for line in partitions.splitlines():
            name, _, count = line.strip().partition("|")
            if name.endswith("*"):
                default = name = name.removesuffix("*")
            sizes[name] = sizes.get(name, 0) + int(count)
        queue = job.resources.queue or default
        if job.resources.queue and queue not in sizes:
            raise UsageError(
                f"queue={queue!r} is not a partition of this cluster; choose one of {', '.join(sorted(sizes))}"
            )
        if queue in sizes and job.resources.nodes > sizes[queue]:
            raise UsageError(f"nodes={job.resources.nodes} exceeds the {sizes[queue]} nodes of partition {queue}")

    def files(self, job: Job, directory: JobDirectory) -> Mapping[str, str]:
        requested = job.resources
        options = [
            f"--job-name={job.name}",
            f"--nodes={requested.nodes}",
            "--ntasks-per-node=1",
            f"--output=logs/{'%j' if requested.array is None else '%A_%a'}.log",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR2@{_NOTICE_S}",
        ]
        if requested.array is not None:
            options.append(f"--array=0-{requested.array - 1}")
        if requested.gpus:
            options.append(f"--gpus-per-node={requested.gpus}")
        if requested.cpus:
            options.append(f"--cpus-per-task={requested.cpus}")
        if requested.time:
            options.append(f"--time={requested.time}")
        if requested.queue:
            options.append(f"--partition={requested.queue}")
        values = {
            "NODE_SCRIPT": str(directory.path / "node.sh"),
            "NPROC": str(job.processes),
            "GPUS": str(requested.gpus),
            "CPUS": str(requested.cpus or ""),
            # srun does not inherit --cpus-per-task from sbatch.
            "SRUN_CPUS_PER_TASK": str(requested.cpus or 1),
        }
        directives = [f"SBATCH {option}" for option in options]
        return {
            "script.sh": make_script(job, directory, "slurm.sh", values, directives),
            "node.sh": template("node.sh"),
        }

    def command(self, job: Job, directory: JobDirectory) -> list[str]:
        return ["sbatch", "--parsable", f"--chdir={directory.path}", str(directory.script)]

    def find(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any] | None:
        found = _run("squeue", "--me", "--noheader", f"--name={job.name}", "--format=%A").split()
        return {"job": found[0]} if found else None

    def submit(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any]:
        return {"job": _run(*self.command(job, directory)).strip().partition(";")[0]}

    def status(self, directory: JobDirectory, ids: dict[str, Any]) -> Status:
        shown = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", ids["job"]], capture_output=True, text=True, check=False
        )
        if shown.returncode and "Invalid job id" not in shown.stderr:
            raise StoreError(f"scontrol failed: {' '.join(shown.stderr.split())}")
        # An array takes the state of its most active job. Once all have ended, a completed one decides, because it has
        # found the output complete.
        found = sorted(re.findall(r"JobState=(\w+).* Reason=(\S+)", shown.stdout), key=lambda job: _activity(job[0]))
        state, reason = found[-1] if found else ("", "None")
        states = ", ".join(f"{count} {name}" for name, count in Counter(job[0] for job in found).items())
        detail = f"job {ids['job']}" + (f": {state if len(found) == 1 else states}" if found else "")
        detail += "" if reason == "None" else f", {reason}"
        if state in _WAITING:
            return Status("waiting", detail)
        if state in _RUNNING:
            return Status("running", detail)
        # Slurm forgets a job some minutes after it ends; the script's exit code remains.
        code = directory.exit_code()
        if state == "COMPLETED" or (not state and code == 0):
            return Status("done", detail)
        if state == "CANCELLED" or directory.cancelled.exists():
            return Status("cancelled", detail)
        if not state and code is None:
            return Status("lost", detail)
        return Status("failed", detail if code is None else f"{detail}, exit code {code}")

    def log(self, directory: JobDirectory, ids: dict[str, Any], seen: Counter[str]) -> dict[str, bytes]:
        # The log of an array is that of its first job; the others are beside it.
        first = directory.logs / f"{ids['job']}_0.log"
        return read_rest(first if first.exists() else directory.logs / f"{ids['job']}.log", seen)

    def cancel(self, directory: JobDirectory, ids: dict[str, Any]) -> None:
        if self.status(directory, ids).state == "waiting":
            _run("scancel", ids["job"])
        else:
            # Jobs of an array that have not started.
            _run("scancel", "--state=PENDING", ids["job"])
            # A plain scancel kills the job after 30 s, even while it saves. The script forwards this signal instead.
            _run("scancel", "--signal=TERM", "--batch", ids["job"])


def _activity(state: str) -> int:
    return 3 if state in _RUNNING else 2 if state in _WAITING else 1 if state == "COMPLETED" else 0


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StoreError(f"{command[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout
