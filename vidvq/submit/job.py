"""What is submitted: a verb with its arguments, and what it runs on."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from vidvq.errors import UsageError
from vidvq.storage import canonical_json, sha256_bytes

# Slurm's own default limit.
MOST_IN_ARRAY = 1000
VERBS = ("train", "shard", "tokenize")
_TIME = re.compile(r"(\d+-)?\d{1,3}:\d{2}:\d{2}")
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*")
_VOLUME = re.compile(r"[a-z0-9][a-z0-9.-]*:/[^:]*")


@dataclass(frozen=True)
class Resources:
    """What a job asks of a cluster, and which one. Each backend takes some of it and refuses the rest.

    Attributes:
        nodes: machines.
        gpus: of each machine; 0 for none.
        cpus: cores of each machine; None leaves that to the cluster.
        time: limit of one stretch, ``H:MM:SS`` or ``D-HH:MM:SS``; None leaves it to the cluster. Training that reaches
            it saves and is queued again.
        array: jobs of so many ``nodes`` each, of an array, that share the work; None for a single job.
        queue: to wait in: Slurm's partition, Kueue's queue; None for the default one.
        address: of a Ray cluster's job interface, ``http://host:8265``.
        hostfile: lines of ``host slots=8``, absolute path.
        image: of the containers.
        namespace: of Kubernetes; None for the current one.
        volumes: ``CLAIM:/path``: volume claims that all pods see at a path.
        secrets: names of Kubernetes secrets whose keys become environment variables.
    """

    nodes: int = 1
    gpus: int = 0
    cpus: int | None = None
    time: str | None = None
    array: int | None = None
    queue: str | None = None
    address: str | None = None
    hostfile: str | None = None
    image: str | None = None
    namespace: str | None = None
    volumes: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UsageError(f"nodes={self.nodes} must be 1 or more")
        if self.gpus < 0:
            raise UsageError(f"gpus={self.gpus} must be 0 or more")
        if self.cpus is not None and self.cpus < 1:
            raise UsageError(f"cpus={self.cpus} must be 1 or more")
        if self.array is not None and not 1 <= self.array <= MOST_IN_ARRAY:
            raise UsageError(f"array={self.array} must be 1 to {MOST_IN_ARRAY}")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise UsageError(f"time={self.time!r} must be H:MM:SS or D-HH:MM:SS")
        for name in ("queue", "namespace"):
            if (value := getattr(self, name)) is not None and not _PLAIN.fullmatch(value):
                raise UsageError(f"{name}={value!r} must be letters, digits and . _ -")
        for secret in self.secrets:
            if not _PLAIN.fullmatch(secret):
                raise UsageError(f"secret={secret!r} must be the name of a secret, never what it holds")
        for volume in self.volumes:
            if not _VOLUME.fullmatch(volume):
                raise UsageError(f"volume={volume!r} must be CLAIM:/path")

    @property
    def asked(self) -> dict[str, Any]:
        """What was set to something else than its default."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        verb: ``train``, ``shard`` or ``tokenize``.
        arguments: behind the verb, paths absolute; the settings are not among them.
        settings: the resolved configuration, as it is written to ``config.yaml``.
        out: the output directory or URL, which all machines must be able to write.
        backend: where it goes.
        resources: what it asks for.
        folder: where the command was given, absolute; the job runs there.
        python: the interpreter, on every node.
    """

    verb: str
    arguments: tuple[str, ...]
    settings: dict[str, Any]
    out: str
    backend: str
    resources: Resources
    folder: str
    python: str

    def __post_init__(self) -> None:
        if self.verb not in VERBS:
            raise UsageError(f"verb={self.verb!r} cannot be submitted; there are {', '.join(VERBS)}")
        if self.verb == "train" and self.resources.array is not None:
            raise UsageError(f"array={self.resources.array} is for shard and tokenize; give training more nodes")
        for name in (*self.arguments, self.out, self.folder, self.python, self.resources.hostfile or ""):
            refuse_control_characters(name)

    @property
    def key(self) -> str:
        """Names the job by its content: the same submission has the same key."""
        return sha256_bytes(canonical_json(self.to_dict()))[:12]

    @property
    def name(self) -> str:
        """What a cluster's lists show: safe in any of them."""
        return f"vidvq-{self.verb}-{self.key}"

    @property
    def processes(self) -> int:
        """Training processes on each machine."""
        return max(self.resources.gpus, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Job":
        """What :meth:`to_dict` gave."""
        asked: dict[str, Any] = dict(data["resources"])
        asked.update(volumes=tuple(asked["volumes"]), secrets=tuple(asked["secrets"]))
        resources = Resources(**asked)
        return cls(**(data | {"arguments": tuple(data["arguments"]), "resources": resources}))


def refuse_control_characters(name: str) -> None:
    """Refuse a path that would look like several lines in a script or a log."""
    if not name.isprintable():
        raise UsageError(f"{name!r} holds a control character; rename it")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
