"""The run folder: all that is known of a submitted job, readable without vidvq.

``job.json`` what was submitted; ``config.yaml`` its resolved settings; ``script.sh`` and beside it what else runs;
``environment.json`` the versions and the variables it was submitted with; ``attempts/1.json`` what the cluster calls
it; ``exit_code`` how it ended; ``logs/``.
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
from vidvq.errors import UsageError
from vidvq.storage import differences, pretty_json, read_json, write_atomic
from vidvq.submit.job import Job

# Only what steers a job is kept and passed on: an environment may hold passwords.
STEERS = re.compile(r"PYTHONPATH|LD_LIBRARY_PATH|OMP_NUM_THREADS|(CUDA|NCCL|GLOO|TORCH|DS|VIDVQ)_\w+")


@dataclass(frozen=True)
class RunFolder:
    """A run folder; ``path`` is absolute."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def script(self) -> Path:
        """What runs."""
        return self.path / "script.sh"

    @property
    def logs(self) -> Path:
        """Where the job writes."""
        return self.path / "logs"

    @property
    def exit_code_file(self) -> Path:
        """Where the job's script says how it ended."""
        return self.path / "exit_code"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one submission at a time; a killed one holds nothing."""
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def claim(self, job: Job, files: Mapping[str, str]) -> None:
        """Write everything that is known before submission; under :meth:`lock`. A folder that has it is left as it is.

        Raises:
            ValueError: the folder holds another job.
        """
        path, mine = self.path / "job.json", job.to_dict()
        if path.exists():
            if told := list(differences("", read_json(path), mine)):
                raise UsageError(f"{self.path} holds another job: {'; '.join(told)}. Give another --run")
            return
        self.logs.mkdir(exist_ok=True)
        (self.path / "attempts").mkdir(exist_ok=True)
        write_atomic(self.config, yaml.safe_dump(job.settings, sort_keys=False, allow_unicode=True).encode())
        for name, text in files.items():
            write_atomic(self.path / name, text.encode())
        write_atomic(self.path / "environment.json", pretty_json(_environment()))
        # Last: a folder that has it has all the others.
        write_atomic(path, pretty_json(mine))

    @property
    def attempts(self) -> int:
        """How often it was submitted."""
        return len(list((self.path / "attempts").glob("[0-9]*.json")))

    def ids(self) -> dict[str, Any]:
        """What the cluster calls the latest attempt; empty before there is one."""
        return read_json(self.path / f"attempts/{self.attempts}.json") if self.attempts else {}

    def keep_ids(self, ids: dict[str, Any]) -> None:
        """Note what the cluster calls a new attempt."""
        noted = ids | {"submitted_at": datetime.now(UTC).isoformat(timespec="seconds"), "vidvq": __version__}
        write_atomic(self.path / f"attempts/{self.attempts + 1}.json", pretty_json(noted))

    @property
    def cancelled(self) -> Path:
        """Is there once the latest attempt was cancelled."""
        return self.path / f"attempts/{self.attempts}.cancelled"

    def exit_code(self) -> int | None:
        """How the job ended, as its script wrote it; None where it has not."""
        try:
            return int(self.exit_code_file.read_text())
        except (FileNotFoundError, ValueError):
            return None


def read_run(path: Path) -> tuple[RunFolder, Job]:
    """Open a run folder.

    Raises:
        ValueError: it is none.
    """
    if not (path / "job.json").is_file():
        raise UsageError(f"{path} is not a run folder: it has no job.json; give the folder that submit named")
    return RunFolder(path.absolute()), Job.from_dict(read_json(path / "job.json"))


def steering_variables() -> dict[str, str]:
    """The environment variables that steer a job, of this process."""
    return {name: value for name, value in sorted(os.environ.items()) if STEERS.fullmatch(name)}


def _environment() -> dict[str, Any]:
    return {
        "vidvq": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "submitted_from": platform.node(),
        "variables": steering_variables(),
        "packages": {str(item.metadata["Name"]): item.version for item in metadata.distributions()},
    }
