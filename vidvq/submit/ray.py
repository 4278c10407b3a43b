"""Backend for an existing Ray cluster, through its job server. It does not run training."""

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from vidvq.errors import UsageError
from vidvq.log import warn
from vidvq.runtime import ray_jobs
from vidvq.submit.backend import Status
from vidvq.submit.job_directory import JobDirectory
from vidvq.submit.script import shared_out, template
from vidvq.submit.spec import Job

_DEFAULT = "http://127.0.0.1:8265"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_STATES = {"PENDING": "waiting", "RUNNING": "running", "STOPPED": "cancelled", "SUCCEEDED": "done", "FAILED": "failed"}
# Files of a job directory that the job does not need.
_EXCLUDES = ["logs", "attempts", "lock", "job.json", "environment.json"]


class Backend:
    """Submits the job to a Ray job server. See :class:`vidvq.submit.backend.Backend`."""

    takes = frozenset({"address"})

    def check(self, job: Job, dry_run: bool) -> None:
        if job.is_training:
            raise UsageError("training does not run as a Ray job; use --backend slurm, ssh, kubernetes or local")
        address = _address(job)
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"address={address!r} must be the URL of the cluster's job server, http://HOST:8265")
        if parts.hostname not in _LOOPBACK and os.environ.get("RAY_AUTH_MODE") != "token":
            warn(
                f"ANYONE WHO CAN REACH {parts.netloc} CAN RUN COMMANDS THERE: no token is in use. Start the cluster "
                "with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, and set both here"
            )

    def files(self, job: Job, directory: JobDirectory) -> Mapping[str, str]:
        return {"script.sh": template("ray.sh")}

    def command(self, job: Job, directory: JobDirectory) -> list[str]:
        options = ["--working-dir", str(directory.path), "--submission-id", f"{job.name}-ATTEMPT"]
        return ["ray", "job", "submit", "--address", _address(job), *options, "--", *_entrypoint(job)]

    def find(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any] | None:
        ids = {"address": _address(job), "submission_id": f"{job.name}-{attempt}"}
        return ids if ray_jobs.find_job(**ids) else None

    def submit(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any]:
        ids = {"address": _address(job), "submission_id": f"{job.name}-{attempt}"}
        ray_jobs.submit_job(**ids, entrypoint=shlex.join(_entrypoint(job)), folder=directory.path, excludes=_EXCLUDES)
        return ids

    def status(self, directory: JobDirectory, ids: dict[str, Any]) -> Status:
        found = ray_jobs.find_job(ids["address"], ids["submission_id"])
        if not found:
            return Status("lost", f"the cluster at {ids['address']} has no job {ids['submission_id']}")
        return Status(_STATES.get(found[0], "running"), f"{ids['submission_id']}: {' '.join(found[1].split())[:300]}")

    def log(self, directory: JobDirectory, ids: dict[str, Any], seen: Counter[str]) -> dict[str, bytes]:
        rest = ray_jobs.job_log(ids["address"], ids["submission_id"]).encode()[seen["log"] :]
        return {"log": rest} if rest else {}

    def cancel(self, directory: JobDirectory, ids: dict[str, Any]) -> None:
        ray_jobs.stop_job(ids["address"], ids["submission_id"])


def _address(job: Job) -> str:
    return job.resources.address or _DEFAULT


def _entrypoint(job: Job) -> list[str]:
    return ["env", f"SHARED={shared_out(job)}", "bash", "script.sh", job.verb, *job.arguments]
