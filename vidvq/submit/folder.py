"""The run folder: all that is known of a submitted job, readable without vidvq.

``job.json`` what was submitted; ``config.yaml`` its resolved settings; ``script.sh`` what runs; ``environment.json``
the versions and the variables it was submitted with; ``id.json`` what the cluster calls it; ``exit_code`` how it
ended; ``logs/``.
"""

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from vidvq import __version__
from vidvq.storage import create_once, differences, pretty_json, read_json, write_atomic
from vidvq.submit.job import Job

# Only what steers a job is kept: an environment may hold passwords.
_KEPT = re.compile(r"(PATH|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV|CONDA_PREFIX|CUDA_\w+|NCCL_\w+|GLOO_\w+|OMP_\w+)")


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

    def exit_code(self) -> int | None:
        """How the job ended, as its script wrote it; None where it has not."""
        try:
            return int((self.path / "exit_code").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def ids(self) -> dict[str, Any]:
        """What the cluster calls the job; empty before it is submitted."""
        path = self.path / "id.json"
        return read_json(path) if path.exists() else {}

    def keep_ids(self, ids: dict[str, Any]) -> None:
        """Note what the cluster calls the job."""
        write_atomic(self.path / "id.json", pretty_json(ids))

    def claim(self, job: Job, script: str) -> None:
        """Write everything that is known before submission, or refuse a folder that holds another job."""
        self.logs.mkdir(parents=True, exist_ok=True)
        if not create_once(self.path / "job.json", pretty_json(job.to_dict())):
            told = list(differences("", read_json(self.path / "job.json"), job.to_dict()))
            if told:
                raise ValueError(f"{self.path} holds another job: {'; '.join(told)}. Give another --run")
        write_atomic(self.config, yaml.safe_dump(job.settings, sort_keys=False).encode())
        write_atomic(self.script, script.encode())
        self.script.chmod(0o755)
        write_atomic(self.path / "environment.json", pretty_json(_environment()))


def read_run(path: Path) -> tuple[RunFolder, Job]:
    """Open a run folder.

    Raises:
        ValueError: it is none.
    """
    if not (path / "job.json").is_file():
        raise ValueError(f"{path} is not a run folder: it has no job.json; give the folder that submit named")
    return RunFolder(path.resolve()), Job.from_dict(read_json(path / "job.json"))


def _environment() -> dict[str, Any]:
    packages = {str(item.metadata["Name"]): item.version for item in metadata.distributions()}
    return {
        "vidvq": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "submitted_from": platform.node(),
        "submitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "variables": {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)},
        "packages": packages,
    }
