"""Specification of a job: a vidvq command, its settings, and the resources it requests."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from vidvq.config import to_dict
from vidvq.errors import UsageError
from vidvq.storage import canonical_json, is_remote, resolve_path, sha256_bytes

# Slurm's own default limit.
MOST_IN_ARRAY = 1000
# Run under torchrun; the others run on Ray.
_TRAINING = ("train", "generate train")
VERBS = (*_TRAINING, "shard", "tokenize")
_TIME = re.compile(r"(\d+-)?\d{1,3}:\d{2}:\d{2}")
_SIZE = re.compile(r"[1-9]\d*[GM]i", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*")
_IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]*", re.ASCII)
_VOLUME = re.compile(r"[a-z0-9][a-z0-9.-]*:/[^:]*")


@dataclass(frozen=True)
class Resources:
    """Resources that a job requests. A backend rejects the settings it does not support.

    Attributes:
        nodes: number of nodes, at least 1.
        gpus: GPUs per node; 0 for none.
        cpus: CPU cores per node; None for the cluster's default.
        time: time limit of one attempt, ``H:MM:SS`` or ``D-HH:MM:SS``; None for the cluster's default. Training saves a
            checkpoint at the limit and is requeued.
        array: size of a Slurm job array whose jobs share the work, 1 to 1000, each with ``nodes`` nodes; None for a
            single job.
        queue: Slurm partition or Kueue queue; None for the default.
        address: URL of a Ray cluster's job server, ``http://HOST:8265``.
        hostfile: absolute path of a file with lines of ``host slots=8``.
        memory: request and limit of a Kubernetes pod, such as ``64Gi``; None for a request of 2 GiB per CPU core and no
            limit.
        shm_size: largest size of ``/dev/shm`` of a Kubernetes pod, such as ``32Gi``; None for 16 GiB.
        image: container image for Kubernetes.
        namespace: Kubernetes namespace; None for the current one.
        volumes: persistent volume claims to mount in all pods, each ``CLAIM:/path``.
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
    memory: str | None = None
    shm_size: str | None = None
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
        for name in ("memory", "shm_size"):
            if (value := getattr(self, name)) is not None and not _SIZE.fullmatch(value):
                raise UsageError(f"{name}={value!r} must be a number of Gi or Mi, such as 64Gi")
        for name in ("queue", "namespace"):
            if (value := getattr(self, name)) is not None and not _PLAIN.fullmatch(value):
                raise UsageError(f"{name}={value!r} must consist of letters, digits and . _ -")
        if self.image is not None and not _IMAGE.fullmatch(self.image):
            raise UsageError(f"image={self.image!r} must consist of letters, digits and . _ - : / @")
        for secret in self.secrets:
            if not _PLAIN.fullmatch(secret):
                raise UsageError(f"secret={secret!r} must be the name of a secret, never its value")
        for volume in self.volumes:
            if not _VOLUME.fullmatch(volume):
                raise UsageError(f"volume={volume!r} must be CLAIM:/path")

    @property
    def requested(self) -> dict[str, Any]:
        """The settings that differ from their defaults, by name."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        verb: the vidvq command, one of :data:`VERBS`.
        arguments: the command's arguments without settings; paths are absolute.
        settings: the resolved configuration, written to ``config.yaml``.
        out: output directory or URL, writable from all nodes.
        backend: name of the backend.
        resources: the requested resources.
        folder: absolute path of the job's working directory, where the command was given.
        python: path of the Python interpreter on every node.
    """

    # A newer version may record more.
    __pydantic_config__: ClassVar = {"extra": "ignore"}

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
            raise UsageError(f"verb={self.verb!r} cannot be submitted; choose one of {', '.join(VERBS)}")
        if self.is_training and self.resources.array is not None:
            raise UsageError(f"array={self.resources.array} is for shard and tokenize; use more nodes for training")
        for name in (*self.arguments, self.out, self.folder, self.python, self.resources.hostfile or ""):
            refuse_control_characters(name)

    @property
    def key(self) -> str:
        """Hash of the job's content; equal submissions have equal keys."""
        return sha256_bytes(canonical_json(to_dict(self)))[:12]

    @property
    def name(self) -> str:
        """Name for the scheduler, valid on every backend."""
        return f"vidvq-{self.verb.replace(' ', '-')}-{self.key}"

    @property
    def is_training(self) -> bool:
        """Whether the job runs under torchrun, saves when it is stopped, and resumes."""
        return self.verb in _TRAINING

    @property
    def training_data(self) -> dict[str, str]:
        """Names of settings by the local directories that they name for training to read."""
        name = "clips" if self.verb == "train" else "tokens"
        given: Iterable[str] = self.settings.get("data", {}).get(name, ()) if self.is_training else ()
        return {path: f"data.{name}" for path in given if not is_remote(resolve_path(path))}

    @property
    def processes(self) -> int:
        """Training processes per node."""
        return max(self.resources.gpus, 1)

    def command_line(self, config: str) -> list[str]:
        """The vidvq command and its arguments.

        Args:
            config: path of the file with the settings.
        """
        # `vidvq train` takes the file as its argument.
        option = [] if self.verb == "train" else ["--config"]
        return [*self.verb.split(), *self.arguments, *option, config]


def refuse_control_characters(name: str) -> None:
    """Reject a name that would span several lines of a script or log.

    Raises:
        UsageError: the name has a control character.
    """
    if not name.isprintable():
        raise UsageError(f"{name!r} contains a control character; rename it")
