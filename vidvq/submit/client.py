"""Submits jobs, and queries, follows and cancels submitted ones."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidvq.errors import UsageError
from vidvq.storage import make_folder
from vidvq.submit.backend import Backend, Status, get_backend
from vidvq.submit.run_folder import RunFolder, read_run
from vidvq.submit.spec import Job, refuse_control_characters

_POLL_S = 0.5


@dataclass(frozen=True)
class Submitted:
    """Result of a submission.

    Attributes:
        ids: the scheduler's ids of the job.
        status: state of the job if it was submitted before; None if it was submitted now.
    """

    run: RunFolder
    ids: dict[str, Any]
    status: Status | None = None


def preview(job: Job, path: Path) -> Iterator[str]:
    """Yield the lines of the files that :func:`submit` would write and of the command it would run.

    Args:
        path: the run folder; nothing is written into it.

    Raises:
        UsageError: the backend cannot run the job.
    """
    backend, run = _checked(job, path, dry_run=True)
    for name, text in backend.files(job, run).items():
        yield f"# ---- {run.path / name}"
        yield from text.splitlines()
    yield "# ---- command"
    yield shlex.join(backend.command(job, run))


def submit(job: Job, path: Path) -> Submitted:
    """Submit a job. A job that waits, runs or is done is left alone; one that failed or was cancelled is resubmitted.

    Args:
        path: the run folder, created if missing.

    Returns:
        The scheduler's ids, and the state of a job that was submitted before.

    Raises:
        UsageError: the backend cannot run the job, or ``path`` holds another job; nothing was submitted.
        OSError: the run folder cannot be written, or the scheduler rejects the job; nothing was submitted.
    """
    backend, run = _checked(job, path, dry_run=False)
    make_folder(run.path)
    with run.lock():
        run.claim(job, backend.files(job, run))
        attempt = run.attempts + 1
        if ids := run.ids():
            status = backend.status(run, ids)
            if not status.ended or status.state == "done":
                return Submitted(run, ids, status)
        elif found := backend.find(job, run, attempt):
            # The process that submitted it was killed before it recorded the ids.
            run.record_ids(found)
            return Submitted(run, found, backend.status(run, found))
        run.exit_code_file.unlink(missing_ok=True)
        ids = backend.submit(job, run, attempt)
        run.record_ids(ids)
        return Submitted(run, ids)


def status(path: Path) -> Status:
    """Query the state of a run folder's job.

    Raises:
        UsageError: ``path`` is not a run folder, or its job was never submitted.
        StoreError: the scheduler does not answer.
    """
    backend, run, ids = _opened(path)
    return backend.status(run, ids)


def cancel(path: Path) -> Status:
    """Request that a run folder's job stop; raises as :func:`status`.

    Returns:
        The state before the request.
    """
    backend, run, ids = _opened(path)
    before = backend.status(run, ids)
    if not before.ended:
        run.cancelled.touch()
        backend.cancel(run, ids)
    return before


def logs(path: Path, follow: bool) -> Iterator[bytes]:
    """Yield a job's output; raises as :func:`status`.

    Args:
        follow: continue until the job ends, instead of stopping at the current end of the output.
    """
    backend, run, ids = _opened(path)
    offset = 0
    while True:
        ended = not follow or backend.status(run, ids).ended
        while data := backend.log(run, ids, offset):
            offset += len(data)
            yield data
        if ended:
            return
        time.sleep(_POLL_S)


def wait(path: Path) -> Status:
    """Block until a job ends; raises as :func:`status`."""
    backend, run, ids = _opened(path)
    while not (current := backend.status(run, ids)).ended:
        time.sleep(_POLL_S)
    return current


def _checked(job: Job, path: Path, dry_run: bool) -> tuple[Backend, RunFolder]:
    run, backend = RunFolder(path.absolute()), get_backend(job.backend)
    refuse_control_characters(str(run.path))
    for name, value in job.resources.requested.items():
        if name not in backend.takes:
            raise UsageError(f"{name}={value!r} is not supported by the {job.backend} backend; remove it")
    backend.check(job, dry_run)
    return backend, run


def _opened(path: Path) -> tuple[Backend, RunFolder, dict[str, Any]]:
    run, job = read_run(path)
    ids = run.ids()
    if not ids:
        raise UsageError(f"{path} was never submitted; run the same submit command again")
    return get_backend(job.backend), run, ids
