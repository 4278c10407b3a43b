"""What a kind of cluster must be able to do, and which there are."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from vidvq.submit.folder import RunFolder
from vidvq.submit.job import Job

# Each is a module of this package with a class `Backend`.
BACKENDS = ("local",)


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


class Backend(Protocol):
    """A kind of cluster."""

    def check(self, job: Job) -> None:
        """Refuse what cannot run.

        Raises:
            ValueError: one line: no scheduler here, no such queue, more nodes than there are.
        """
        ...

    def script(self, job: Job, run: RunFolder) -> str:
        """The whole script that runs."""
        ...

    def command(self, job: Job, run: RunFolder) -> list[str]:
        """What is run here to submit the script."""
        ...

    def find(self, job: Job) -> dict[str, Any] | None:
        """The ids of this very job where the cluster has it, though its run folder does not say so."""
        ...

    def submit(self, job: Job, run: RunFolder) -> dict[str, Any]:
        """Submit; returns the ids to keep."""
        ...

    def status(self, run: RunFolder, ids: dict[str, Any]) -> Status:
        """How it stands."""
        ...

    def log_file(self, run: RunFolder, ids: dict[str, Any]) -> Path:
        """Where its output goes; need not exist yet."""
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
        raise ValueError(f"backend={name!r} is not known; there are {', '.join(BACKENDS)}")
    return import_module(f"vidvq.submit.{name}").Backend()
