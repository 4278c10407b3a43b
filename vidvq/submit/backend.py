"""The interface of a cluster backend, and the list of backends."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

from vidvq.errors import UsageError
from vidvq.submit.job_directory import JobDirectory
from vidvq.submit.spec import Job

# Each is a module of this package with a class `Backend`.
BACKENDS = ("local", "slurm", "ssh", "ray", "kubernetes")


@dataclass(frozen=True)
class Status:
    """State of a submitted job.

    Attributes:
        state: ``waiting``, ``running``, ``done``, ``failed``, ``cancelled``, or ``lost`` (it ended without leaving an
            exit code).
        detail: the scheduler's own description.
    """

    state: str
    detail: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job has finished, successfully or not."""
        return self.state not in {"waiting", "running"}

    def __str__(self) -> str:
        """``state (detail)``."""
        return f"{self.state} ({self.detail})" if self.detail else self.state


class Backend(Protocol):
    """A kind of cluster.

    Attributes:
        takes: names of the fields of :class:`vidvq.submit.spec.Resources` that the backend supports.
    """

    takes: ClassVar[frozenset[str]]

    def check(self, job: Job, dry_run: bool) -> None:
        """Reject a job that the cluster cannot run.

        Args:
            dry_run: whether the job is only shown; the scheduler and its client are then not required.

        Raises:
            UsageError: a resource is missing or exceeds the cluster, or the scheduler's client is not installed.
            StoreError: the scheduler does not answer.
        """
        ...

    def files(self, job: Job, directory: JobDirectory) -> Mapping[str, str]:
        """Scripts and manifests of a job.

        Returns:
            Contents by file name, relative to the job directory.
        """
        ...

    def command(self, job: Job, directory: JobDirectory) -> list[str]:
        """Command line that submits the job."""
        ...

    def find(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any] | None:
        """Look up a submitted job whose ids were never recorded, because the submitting process was killed.

        Returns:
            The scheduler's ids, or None if the scheduler does not know the job.
        """
        ...

    def submit(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any]:
        """Submit the job.

        Returns:
            The scheduler's ids, to be recorded in the job directory.

        Raises:
            StoreError: the scheduler rejects the job; quotes its message.
        """
        ...

    def status(self, directory: JobDirectory, ids: dict[str, Any]) -> Status:
        """Query the state of a submitted job."""
        ...

    def log(self, directory: JobDirectory, ids: dict[str, Any], seen: Counter[str]) -> dict[str, bytes]:
        """Read the job's output that was not read before.

        Args:
            seen: bytes read before of each part of the output, a file or the lines of a pod.

        Returns:
            The bytes that follow, of each part that has more.
        """
        ...

    def cancel(self, directory: JobDirectory, ids: dict[str, Any]) -> None:
        """Request that the job stop; a training job saves a checkpoint first."""
        ...


def get_backend(name: str) -> Backend:
    """Load a backend by its name.

    Raises:
        UsageError: the name is not in :data:`BACKENDS`.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend={name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    return import_module(f"vidvq.submit.{name}").Backend()
