"""What a kind of cluster must be able to do, and which there are."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

from vidvq.errors import UsageError
from vidvq.submit.folder import RunFolder
from vidvq.submit.job import Job

# Each is a module of this package with a class `Backend`.
BACKENDS = ("local", "slurm", "ssh", "ray", "kubernetes")


@dataclass(frozen=True)
class Status:
    """How a job stands.

    Attributes:
        state: ``waiting``, ``running``, ``done``, ``failed``, ``cancelled`` or ``lost`` (it ended, nobody knows how).
        detail: in the cluster's own words.
    """

    state: str
    detail: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in {"waiting", "running"}

    def __str__(self) -> str:
        return f"{self.state} ({self.detail})" if self.detail else self.state


class Backend(Protocol):
    """A kind of cluster."""

    takes: ClassVar[frozenset[str]]
    """The fields of :class:`vidvq.submit.job.Resources` that mean something there."""

    def check(self, job: Job, dry_run: bool) -> None:
        """Refuse what cannot run, or, where it shall not only be shown, what cannot be submitted from here.

        Raises:
            ValueError: one line: no scheduler here, no such queue, more nodes than there are.
        """
        ...

    def files(self, job: Job, run: RunFolder) -> Mapping[str, str]:
        """All that runs, by the names the files get in the run folder."""
        ...

    def command(self, job: Job, run: RunFolder) -> list[str]:
        """What is run here to submit them."""
        ...

    def find(self, job: Job, run: RunFolder, attempt: int) -> dict[str, Any] | None:
        """The ids of this very job where the cluster has it, though its run folder does not say so."""
        ...

    def submit(self, job: Job, run: RunFolder, attempt: int) -> dict[str, Any]:
        """Submit; returns the ids to keep.

        Raises:
            ValueError: the cluster refused it, in its words.
        """
        ...

    def status(self, run: RunFolder, ids: dict[str, Any]) -> Status:
        """How it stands."""
        ...

    def log(self, run: RunFolder, ids: dict[str, Any], offset: int) -> bytes:
        """Its output so far, from a byte on."""
        ...

    def cancel(self, run: RunFolder, ids: dict[str, Any]) -> None:
        """Ask it to stop; training saves first."""
        ...


def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend={name!r} is not known; there are {', '.join(BACKENDS)}")
    return import_module(f"vidvq.submit.{name}").Backend()
