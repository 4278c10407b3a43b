"""What is submitted: a verb with its arguments, and what it runs on."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from vidvq.storage import canonical_json, sha256_bytes

_TIME = re.compile(r"(\d+-)?\d{1,3}:\d{2}:\d{2}")
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Resources:
    """What a job asks of a cluster.

    Attributes:
        nodes: machines.
        gpus: of each machine; 0 for none.
        cpus: cores of each machine; None leaves that to the cluster.
        time: limit of one stretch, ``H:MM:SS`` or ``D-HH:MM:SS``; None leaves it to the cluster. Training that reaches
            it saves and is queued again.
        queue: to wait in: Slurm's partition; None for the default one.
    """

    nodes: int = 1
    gpus: int = 0
    cpus: int | None = None
    time: str | None = None
    queue: str | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"nodes={self.nodes} must be 1 or more")
        if self.gpus < 0:
            raise ValueError(f"gpus={self.gpus} must be 0 or more")
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"cpus={self.cpus} must be 1 or more")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ValueError(f"time={self.time!r} must be H:MM:SS or D-HH:MM:SS")
        if self.queue is not None and not _PLAIN.fullmatch(self.queue):
            raise ValueError(f"queue={self.queue!r} must be letters, digits and . _ -")


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        verb: ``train``, ``shard`` or ``tokenize``.
        arguments: behind the verb, paths absolute; the settings are not among them.
        settings: the resolved configuration, as it is written to ``config.yaml``.
        backend: where it goes.
        resources: what it asks for.
        folder: where the command was given, absolute; the job runs there.
        python: the interpreter, on every node.
    """

    verb: str
    arguments: list[str]
    settings: dict[str, Any]
    backend: str
    resources: Resources
    folder: str
    python: str

    @property
    def key(self) -> str:
        """Names the job by its content: the same submission has the same key."""
        return sha256_bytes(canonical_json(asdict(self)))[:12]

    @property
    def name(self) -> str:
        """What a cluster's lists show: safe in any of them."""
        return f"vidvq-{self.verb}-{self.key}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Job":
        """What :meth:`to_dict` gave."""
        return cls(**(data | {"resources": Resources(**data["resources"])}))
