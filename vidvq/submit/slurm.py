"""Slurm: one job or an array of them, one task per machine; requeued by itself where its time is up."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vidvq.errors import StoreError, UsageError
from vidvq.submit.backend import Status
from vidvq.submit.detached import read_from
from vidvq.submit.folder import RunFolder
from vidvq.submit.job import Job
from vidvq.submit.script import make_script, template

# Before the time is up; Slurm may be a minute early.
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
    """See :class:`vidvq.submit.backend.Backend`."""

    takes = frozenset({"nodes", "gpus", "cpus", "time", "array", "queue"})

    def check(self, job: Job, dry_run: bool) -> None:
        """See the protocol."""
        if not shutil.which("sbatch"):
            raise UsageError("sbatch is not on the path; submit from a machine of the Slurm cluster")
        sizes: dict[str, int] = {}
        default = None
        for line in _ask("sinfo", "--noheader", "--format=%P|%D").splitlines():
            name, _, count = line.strip().partition("|")
            if name.endswith("*"):
                default = name = name.removesuffix("*")
            sizes[name] = sizes.get(name, 0) + int(count)
        queue = job.resources.queue or default
        if job.resources.queue and queue not in sizes:
            raise UsageError(f"queue={queue!r} is no partition of this cluster; there are {', '.join(sorted(sizes))}")
        if queue in sizes and job.resources.nodes > sizes[queue]:
            raise UsageError(f"nodes={job.resources.nodes} are more than the {sizes[queue]} of partition {queue}")

    def files(self, job: Job, run: RunFolder) -> Mapping[str, str]:
        """See the protocol."""
        asked = job.resources
        options = [
            f"--job-name={job.name}",
            f"--nodes={asked.nodes}",
            "--ntasks-per-node=1",
            f"--output=logs/{'%j' if asked.array is None else '%A_%a'}.log",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR2@{_NOTICE_S}",
        ]
        if asked.array is not None:
            options.append(f"--array=0-{asked.array - 1}")
        if asked.gpus:
            options.append(f"--gpus-per-node={asked.gpus}")
        if asked.cpus:
            options.append(f"--cpus-per-task={asked.cpus}")
        if asked.time:
            options.append(f"--time={asked.time}")
        if asked.queue:
            options.append(f"--partition={asked.queue}")
        values = {
            "NODE_SCRIPT": str(run.path / "node.sh"),
            "NPROC": str(job.processes),
            "GPUS": str(asked.gpus),
            "CPUS": str(asked.cpus or ""),
            # Tasks get the cores that the job asked for.
            "SRUN_CPUS_PER_TASK": str(asked.cpus or 1),
        }
        directives = [f"SBATCH {option}" for option in options]
        return {
            "script.sh": make_script(job, run, "slurm.sh", values, directives),
            "node.sh": template("node.sh"),
        }

    def command(self, job: Job, run: RunFolder) -> list[str]:
        """See the protocol."""
        return ["sbatch", "--parsable", f"--chdir={run.path}", str(run.script)]

    def find(self, job: Job, run: RunFolder, attempt: int) -> dict[str, Any] | None:
        """See the protocol."""
        found = _ask("squeue", "--me", "--noheader", f"--name={job.name}", "--format=%A").split()
        return {"job": found[0]} if found else None

    def submit(self, job: Job, run: RunFolder, attempt: int) -> dict[str, Any]:
        """See the protocol."""
        return {"job": _ask(*self.command(job, run)).strip().partition(";")[0]}

    def status(self, run: RunFolder, ids: dict[str, Any]) -> Status:
        """See the protocol."""
        shown = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", ids["job"]], capture_output=True, text=True, check=False
        )
        if shown.returncode and "Invalid job id" not in shown.stderr:
            raise StoreError(f"scontrol says: {' '.join(shown.stderr.split())}")
        # Of an array the liveliest, and else the one that did best: it has seen to it that all is there.
        found = sorted(re.findall(r"JobState=(\w+).* Reason=(\S+)", shown.stdout), key=lambda job: _liveliness(job[0]))
        state, reason = found[-1] if found else ("", "None")
        states = ", ".join(f"{count} {name}" for name, count in Counter(job[0] for job in found).items())
        detail = f"job {ids['job']}" + (f": {state if len(found) == 1 else states}" if found else "")
        detail += "" if reason == "None" else f", {reason}"
        if state in _WAITING:
            return Status("waiting", detail)
        if state in _RUNNING:
            return Status("running", detail)
        # Slurm forgets a job after some minutes; its script wrote down how it ended.
        code = run.exit_code()
        if state == "COMPLETED" or (not state and code == 0):
            return Status("done", detail)
        if state == "CANCELLED" or run.cancelled.exists():
            return Status("cancelled", detail)
        if not state and code is None:
            return Status("lost", detail)
        return Status("failed", detail if code is None else f"{detail}, exit code {code}")

    def log(self, run: RunFolder, ids: dict[str, Any], offset: int) -> bytes:
        """See the protocol."""
        # Of an array the first one's; the others' lie beside it.
        first = run.logs / f"{ids['job']}_0.log"
        return read_from(first if first.exists() else run.logs / f"{ids['job']}.log", offset)

    def cancel(self, run: RunFolder, ids: dict[str, Any]) -> None:
        """See the protocol."""
        if self.status(run, ids).state == "waiting":
            _ask("scancel", ids["job"])
        else:
            # Those of an array that have not begun.
            _ask("scancel", "--state=PENDING", ids["job"])
            # Plainly cancelled it would be killed after half a minute, saved or not; its script passes this on.
            _ask("scancel", "--signal=TERM", "--batch", ids["job"])


def _liveliness(state: str) -> int:
    return 3 if state in _RUNNING else 2 if state in _WAITING else 1 if state == "COMPLETED" else 0


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StoreError(f"{command[0]} says: {' '.join(done.stderr.split())}")
    return done.stdout
