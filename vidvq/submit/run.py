"""Submitting, and asking after what was submitted."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidvq.errors import UsageError
from vidvq.submit.backend import Backend, Status, get_backend
from vidvq.submit.folder import RunFolder, read_run
from vidvq.submit.job import Job, refuse_control_characters

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Submitted:
    """What became of a submission.

    Attributes:
        run: the run folder.
        ids: what the cluster calls the job.
        status: how it stands; None where it was submitted just now.
    """

    run: RunFolder
    ids: dict[str, Any]
    status: Status | None = None


def preview(job: Job, path: Path) -> Iterator[str]:
    """Say what :func:`submit` would write and run, line by line; nothing is written.

    Raises:
        ValueError: it cannot run there.
    """
    backend, run = _checked(job, path, dry_run=True)
    for name, text in backend.files(job, run).items():
        yield f"# ---- {run.path / name}"
        yield from text.splitlines()
    yield "# ---- command"
    yield shlex.join(backend.command(job, run))


def submit(job: Job, path: Path) -> Submitted:
    """Submit a job, unless it is there already; one that failed or was cancelled goes on by a new attempt.

    Raises:
        ValueError: it cannot run there, or ``path`` holds another job; nothing was submitted.
        OSError: the run folder cannot be written; nothing was submitted.
    """
    backend, run = _checked(job, path, dry_run=False)
    run.path.mkdir(parents=True, exist_ok=True)
    with run.lock():
        run.claim(job, backend.files(job, run))
        attempt = run.attempts + 1
        if ids := run.ids():
            status = backend.status(run, ids)
            if not status.ended or status.state == "done":
                return Submitted(run, ids, status)
        elif found := backend.find(job, run, attempt):
            # Whoever submitted it was killed before it could note the ids.
            run.keep_ids(found)
            return Submitted(run, found, backend.status(run, found))
        run.exit_code_file.unlink(missing_ok=True)
        ids = backend.submit(job, run, attempt)
        run.keep_ids(ids)
        return Submitted(run, ids)


def status(path: Path) -> Status:
    """How the job of a run folder stands."""
    backend, run, ids = _opened(path)
    return backend.status(run, ids)


def cancel(path: Path) -> Status:
    """Ask a job to stop; returns how it stood before."""
    backend, run, ids = _opened(path)
    before = backend.status(run, ids)
    if not before.ended:
        run.cancelled.touch()
        backend.cancel(run, ids)
    return before


def follow(path: Path, keep_on: bool) -> Iterator[bytes]:
    """Yield the job's output so far; with ``keep_on``, and what follows until it ends."""
    backend, run, ids = _opened(path)
    offset = 0
    while True:
        ended = not keep_on or backend.status(run, ids).ended
        while data := backend.log(run, ids, offset):
            offset += len(data)
            yield data
        if ended:
            return
        time.sleep(_LOOK_EVERY_S)


def wait(path: Path) -> Status:
    """Return when a job has ended: how."""
    backend, run, ids = _opened(path)
    while not (now := backend.status(run, ids)).ended:
        time.sleep(_LOOK_EVERY_S)
    return now


def _checked(job: Job, path: Path, dry_run: bool) -> tuple[Backend, RunFolder]:
    run, backend = RunFolder(path.absolute()), get_backend(job.backend)
    refuse_control_characters(str(run.path))
    for name, value in job.resources.asked.items():
        if name not in backend.takes:
            raise UsageError(f"{name}={value!r} means nothing to the backend {job.backend}; leave it out")
    backend.check(job, dry_run)
    return backend, run


def _opened(path: Path) -> tuple[Backend, RunFolder, dict[str, Any]]:
    run, job = read_run(path)
    ids = run.ids()
    if not ids:
        raise UsageError(f"{path} was never submitted; run the same submit command again")
    return get_backend(job.backend), run, ids
