"""Submits jobs, and queries, follows and cancels submitted ones."""

import shlex
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidvq.errors import UsageError
from vidvq.log import warn
from vidvq.storage import make_folder
from vidvq.submit.backend import Backend, Status, get_backend
from vidvq.submit.job_directory import JobDirectory, config_text, read_job
from vidvq.submit.spec import Job, refuse_control_characters

_POLL_S = 0.5
# Backends whose nodes have the same paths, and whether this machine is certain to have them too.
_SAME_PATHS = {"local": True, "slurm": True, "ssh": False}


@dataclass(frozen=True)
class Submitted:
    """Result of a submission.

    Attributes:
        ids: the scheduler's ids of the job.
        status: state of the job if it was submitted before; None if it was submitted now.
    """

    directory: JobDirectory
    ids: dict[str, Any]
    status: Status | None = None


def preview(job: Job, path: Path) -> Iterator[str]:
    """Yield the lines of the files that :func:`submit` would write and of the command it would run.

    Args:
        path: the job directory; nothing is written into it.

    Raises:
        UsageError: the backend cannot run the job.
    """
    backend, directory = _checked(job, path, dry_run=True)
    for name, text in {directory.config.name: config_text(job), **backend.files(job, directory)}.items():
        yield f"# ---- {directory.path / name}"
        yield from text.splitlines()
    yield "# ---- command"
    yield shlex.join(backend.command(job, directory))


def submit(job: Job, path: Path) -> Submitted:
    """Submit a job. A job that waits, runs or is done is left alone; one that failed or was cancelled is resubmitted.

    Args:
        path: the job directory, created if missing.

    Returns:
        The scheduler's ids, and the state of a job that was submitted before.

    Raises:
        UsageError: the backend cannot run the job, or ``path`` holds another job; nothing was submitted.
        OSError: the job directory cannot be written, or the scheduler rejects the job; nothing was submitted.
    """
    backend, directory = _checked(job, path, dry_run=False)
    make_folder(directory.path)
    with directory.lock():
        directory.claim(job, backend.files(job, directory))
        attempt = directory.attempts + 1
        if ids := directory.ids():
            status = backend.status(directory, ids)
            if not status.ended or status.state == "done":
                return Submitted(directory, ids, status)
        elif found := backend.find(job, directory, attempt):
            # The process that submitted it was killed before it recorded the ids.
            directory.record_ids(found)
            return Submitted(directory, found, backend.status(directory, found))
        directory.exit_code_file.unlink(missing_ok=True)
        ids = backend.submit(job, directory, attempt)
        directory.record_ids(ids)
        return Submitted(directory, ids)


def status(path: Path) -> Status:
    """Query the state of the job of a job directory.

    Raises:
        UsageError: ``path`` is not a job directory, or its job was never submitted.
        StoreError: the scheduler does not answer.
    """
    backend, directory, ids = _opened(path)
    return backend.status(directory, ids)


def cancel(path: Path) -> Status:
    """Request that the job of a job directory stop; raises as :func:`status`.

    Returns:
        The state before the request.
    """
    backend, directory, ids = _opened(path)
    before = backend.status(directory, ids)
    if not before.ended:
        directory.cancelled.touch()
        backend.cancel(directory, ids)
    return before


def logs(path: Path, follow: bool) -> Iterator[bytes]:
    """Yield a job's output; raises as :func:`status`.

    Args:
        follow: continue until the job ends, instead of stopping at the current end of the output.
    """
    backend, directory, ids = _opened(path)
    seen: Counter[str] = Counter()
    while True:
        ended = not follow or backend.status(directory, ids).ended
        while parts := backend.log(directory, ids, seen):
            seen.update({part: len(data) for part, data in parts.items()})
            yield from parts.values()
        if ended:
            return
        time.sleep(_POLL_S)


def wait(path: Path) -> Status:
    """Block until a job ends; raises as :func:`status`."""
    backend, directory, ids = _opened(path)
    while not (current := backend.status(directory, ids)).ended:
        time.sleep(_POLL_S)
    return current


def _checked(job: Job, path: Path, dry_run: bool) -> tuple[Backend, JobDirectory]:
    directory, backend = JobDirectory(path.absolute()), get_backend(job.backend)
    refuse_control_characters(str(directory.path))
    for name, value in job.resources.requested.items():
        if name not in backend.takes:
            raise UsageError(f"{name}={value!r} is not supported by the {job.backend} backend; remove it")
    backend.check(job, dry_run)
    _check_training_data(job, dry_run)
    return backend, directory


def _check_training_data(job: Job, dry_run: bool) -> None:
    """Refuse, or where the job need not see the files of this machine, warn of training data that is not there."""
    if job.backend not in _SAME_PATHS:
        return
    for path, name in job.training_data.items():
        if Path(path).exists():
            continue
        if dry_run or not _SAME_PATHS[job.backend]:
            warn(f"{name}={path} does not exist on this machine; the nodes of the job need it")
        else:
            raise UsageError(f"{name}={path} does not exist; set it to a directory that all nodes of the job see")


def _opened(path: Path) -> tuple[Backend, JobDirectory, dict[str, Any]]:
    directory, job = read_job(path)
    ids = directory.ids()
    if not ids:
        raise UsageError(f"{path} was never submitted; run the same submit command again")
    return get_backend(job.backend), directory, ids
