"""Client of a Ray cluster's job server: uploads a folder and runs a command in it on the cluster."""

from pathlib import Path
from typing import Any

import vidvq
from vidvq.errors import StoreError, UsageError


def submit_job(address: str, submission_id: str, entrypoint: str, folder: Path, excludes: list[str]) -> None:
    """Submit a command, which runs in a copy of a folder with this installation's vidvq package.

    Args:
        address: URL of the job server, ``http://HOST:8265``.
        submission_id: unique id of the job; the cluster rejects a second job with the same id.
        entrypoint: shell command line.
        folder: working directory to upload.
        excludes: patterns of files in ``folder`` that are not uploaded, in .gitignore syntax.

    Raises:
        UsageError: Ray is not installed.
        StoreError: the cluster cannot be reached, or rejects the job.
    """
    package = Path(vidvq.__file__).parent
    environment = {
        "working_dir": str(folder),
        "py_modules": [str(package)],
        "excludes": [*excludes, "__pycache__", "demo/videos"],
    }
    _request(address, "submit_job", entrypoint=entrypoint, submission_id=submission_id, runtime_env=environment)


def find_job(address: str, submission_id: str) -> tuple[str, str] | None:
    """Look up a job; raises as :func:`submit_job`.

    Returns:
        Ray's status and message of the job, or None if the cluster has no such job.
    """
    for job in _request(address, "list_jobs"):
        if job.submission_id == submission_id:
            return job.status.value, job.message or ""
    return None


def job_log(address: str, submission_id: str) -> str:
    """Read the output of a job so far; raises as :func:`submit_job`."""
    return _request(address, "get_job_logs", submission_id)


def stop_job(address: str, submission_id: str) -> None:
    """Send SIGTERM to a job's command, and SIGKILL some seconds later; raises as :func:`submit_job`."""
    _request(address, "stop_job", submission_id)


def _request(address: str, method: str, *arguments: Any, **named: Any) -> Any:
    try:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UsageError("Ray is not installed; run `pip install 'vidvq[ray]'`") from error
    try:
        return getattr(JobSubmissionClient(address), method)(*arguments, **named)
    except (OSError, RuntimeError, RayError) as error:
        raise StoreError(f"request to the Ray cluster at {address} failed: {' '.join(str(error).split())}") from error
