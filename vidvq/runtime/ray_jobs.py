"""Ray's job interface: packages a folder, sends it to a cluster, and runs a command in it there."""

from pathlib import Path
from typing import Any

import vidvq
from vidvq.errors import StoreError, UsageError


def submit_job(address: str, submission_id: str, entrypoint: str, folder: Path, leave_out: list[str]) -> None:
    """Submit a command; it runs in a copy of ``folder``, with this very vidvq.

    Args:
        address: ``http://host:8265``.
        submission_id: names the job; the cluster refuses a second of that name.
        entrypoint: the command line.
        folder: sent to the cluster.
        leave_out: patterns of files in it that are not sent, as in a .gitignore.

    Raises:
        StoreError: the cluster cannot be reached, or refuses.
    """
    package = Path(vidvq.__file__).parent
    environment = {
        "working_dir": str(folder),
        "py_modules": [str(package)],
        "excludes": [*leave_out, "__pycache__", "demo/videos"],
    }
    _ask(address, "submit_job", entrypoint=entrypoint, submission_id=submission_id, runtime_env=environment)


def find_job(address: str, submission_id: str) -> tuple[str, str] | None:
    """State and message of a job, or None where the cluster does not know it."""
    for job in _ask(address, "list_jobs"):
        if job.submission_id == submission_id:
            return job.status.value, job.message or ""
    return None


def job_log(address: str, submission_id: str) -> str:
    """Output of a job so far."""
    return _ask(address, "get_job_logs", submission_id)


def stop_job(address: str, submission_id: str) -> None:
    """Send SIGTERM to a job's command, and SIGKILL seconds later."""
    _ask(address, "stop_job", submission_id)


def _ask(address: str, method: str, *arguments: Any, **named: Any) -> Any:
    try:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UsageError("Ray is not installed; run `pip install 'vidvq[ray]'`") from error
    try:
        return getattr(JobSubmissionClient(address), method)(*arguments, **named)
    except (OSError, RuntimeError, RayError) as error:
        raise StoreError(f"the Ray cluster at {address} says: {' '.join(str(error).split())}") from error
