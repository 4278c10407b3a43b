"""Submitting, and asking after what was submitted."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidvq.submit.backend import Backend, Status, get_backend
from vidvq.submit.folder import RunFolder, read_run
from vidvq.submit.job import Job

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Submitted:
    """What became of a submission.

    Attributes:
        run: the run folder.
        ids: what the cluster calls the job.
        is_new: False where it had been submitted before, and nothing was done.
    """

    run: RunFolder
    ids: dict[str, Any]
    is_new: bool


def submit(job: Job, path: Path) -> Submitted:
    """Submit a job, once: what is there already is left alone.

    Raises:
        ValueError: it cannot run there, or ``path`` holds another job; nothing was submitted.
        OSError: the run folder cannot be written.
    """
    backend, run = get_backend(job.backend), RunFolder(path.resolve())
    backend.check(job)
    run.claim(job, backend.script(job, run))
    if ids := run.ids():
        return Submitted(run, ids, is_new=False)
    if found := backend.find(job):
        # Whoever submitted it was killed before it could note the id.
        run.keep_ids(found)
        return Submitted(run, found, is_new=False)
    ids = backend.submit(job, run)
    run.keep_ids(ids)
    return Submitted(run, ids, is_new=True)


def status(path: Path) -> Status:
    """How the job of a run folder stands."""
    backend, run, ids = _opened(path)
    return backend.status(run, ids)


def cancel(path: Path) -> Status:
    """Ask a job to stop; returns how it stood before."""
    backend, run, ids = _opened(path)
    before = backend.status(run, ids)
    if not before.ended:
        backend.cancel(run, ids)
    return before


def follow(path: Path, keep_on: bool) -> Iterator[bytes]:
    """Yield the job's output so far; with ``keep_on``, and what follows until it ends."""
    backend, run, ids = _opened(path)
    log, offset = backend.log_file(run, ids), 0
    while True:
        ended = not keep_on or backend.status(run, ids).ended
        if log.exists():
            with log.open("rb") as file:
                file.seek(offset)
                while data := file.read(1 << 16):
                    offset += len(data)
                    yield data
        if ended:
            return
        time.sleep(_LOOK_EVERY_S)


def _opened(path: Path) -> tuple[Backend, RunFolder, dict[str, Any]]:
    run, job = read_run(path)
    ids = run.ids()
    if not ids:
        raise ValueError(f"{path} was never submitted; run the same submit command again")
    return get_backend(job.backend), run, ids
