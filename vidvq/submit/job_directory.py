"""The job directory: the complete record of a submitted job, readable without vidvq.

=====================  ==================================================================
file                   content
=====================  ==================================================================
``job.json``           the submitted job
``config.yaml``        its resolved settings
``script.sh``          the script that runs, beside any further scripts and manifests
``environment.json``   versions and forwarded variables of the submitting environment
``attempts/N.json``    the scheduler's ids of attempt N
``exit_code``          the exit code of the last attempt
``logs/``              the job's output
=====================  ==================================================================
"""

import fcntl
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from vidvq import __version__
from vidvq.config import is_mapping, to_dict, validate
from vidvq.errors import UsageError
from vidvq.storage import differences, pretty_json, read_json, write_atomic
from vidvq.submit.spec import Job

# Other variables are neither recorded nor forwarded, since an environment may hold passwords.
FORWARDED = re.compile(r"PYTHONPATH|LD_LIBRARY_PATH|OMP_NUM_THREADS|(CUDA|NCCL|GLOO|TORCH|DS|VIDVQ)_\w+")


def config_text(job: Job) -> str:
    """Return the content of ``config.yaml``."""
    return yaml.safe_dump(job.settings, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class JobDirectory:
    """A job directory.

    Attributes:
        path: absolute path of the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """File of the resolved settings."""
        return self.path / "config.yaml"

    @property
    def script(self) -> Path:
        """The script that the job runs."""
        return self.path / "script.sh"

    @property
    def logs(self) -> Path:
        """Folder of the job's output."""
        return self.path / "logs"

    @property
    def exit_code_file(self) -> Path:
        """File into which the job's script writes its exit code."""
        return self.path / "exit_code"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Allow one submission at a time; the lock of a killed process is released."""
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def claim(self, job: Job, files: Mapping[str, str]) -> None:
        """Write the job's record, or accept a folder that already holds it. Call it under :meth:`lock`.

        Args:
            files: contents of its scripts and manifests, by file name.

        Raises:
            UsageError: the folder holds another job; names the differences.
        """
        path, record = self.path / "job.json", to_dict(job)
        if path.exists():
            if changed := list(differences("", read_json(path), record)):
                raise UsageError(f"{self.path} holds another job: {'; '.join(changed)}. Give another --job")
            return
        self.logs.mkdir(exist_ok=True)
        (self.path / "attempts").mkdir(exist_ok=True)
        write_atomic(self.config, config_text(job).encode())
        for name, text in files.items():
            write_atomic(self.path / name, text.encode())
        write_atomic(self.path / "environment.json", pretty_json(_environment()))
        # Written last: its presence means that all other files are complete.
        write_atomic(path, pretty_json(record))

    @property
    def attempts(self) -> int:
        """Number of submissions so far."""
        return len(list((self.path / "attempts").glob("[0-9]*.json")))

    def ids(self) -> dict[str, Any]:
        """The scheduler's ids of the latest attempt; empty before the first."""
        return read_json(self.path / f"attempts/{self.attempts}.json") if self.attempts else {}

    def record_ids(self, ids: dict[str, Any]) -> None:
        """Record the scheduler's ids of a new attempt."""
        record = ids | {"submitted_at": datetime.now(UTC).isoformat(timespec="seconds"), "vidvq": __version__}
        write_atomic(self.path / f"attempts/{self.attempts + 1}.json", pretty_json(record))

    @property
    def cancelled(self) -> Path:
        """File that exists once the latest attempt has been cancelled."""
        return self.path / f"attempts/{self.attempts}.cancelled"

    def exit_code(self) -> int | None:
        """Exit code that the job's script wrote; None before the job ends."""
        try:
            return int(self.exit_code_file.read_text())
        except (FileNotFoundError, ValueError):
            return None


def read_job(path: Path) -> tuple[JobDirectory, Job]:
    """Open a job directory.

    Raises:
        UsageError: ``path`` is not a job directory.
    """
    file, remedy = path / "job.json", "give the one that `vidvq submit` printed"
    if not file.is_file():
        raise UsageError(f"{path} is not a job directory: it has no job.json; {remedy}")
    if not is_mapping(job := read_json(file)):
        raise UsageError(f"{path} is not a job directory: its job.json holds no object; {remedy}")
    return JobDirectory(path.absolute()), validate(Job, job, str(file))


def forwarded_variables() -> dict[str, str]:
    """This process's environment variables that are passed on to a job."""
    return {name: value for name, value in sorted(os.environ.items()) if FORWARDED.fullmatch(name)}


def _environment() -> dict[str, Any]:
    return {
        "vidvq": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "submitted_from": platform.node(),
        "variables": forwarded_variables(),
        "packages": {str(item.metadata["Name"]): item.version for item in metadata.distributions()},
    }
