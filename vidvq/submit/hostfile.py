"""Hostfiles as DeepSpeed and MPI have them: lines of ``host slots=8``."""

import re
from dataclasses import dataclass
from pathlib import Path

from vidvq.errors import UsageError

# Never an option of ssh, whatever the file says.
_LINE = re.compile(r"([A-Za-z0-9_][\w.@-]*)(?:\s+slots=(\d+))?")


@dataclass(frozen=True)
class SshHost:
    """A host, as ssh calls it, and how many training processes it takes."""

    name: str
    slots: int

    @property
    def address(self) -> str:
        """As the other hosts call it."""
        return self.name.rpartition("@")[2]


def read_hostfile(path: Path) -> list[SshHost]:
    """Read a hostfile.

    Raises:
        ValueError: it cannot be read, or a line is wrong; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"hostfile {path} cannot be read: {error}") from error
    hosts: list[SshHost] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if not match or match[2] == "0":
            raise UsageError(f"{path}:{number}: {text!r} must be `host slots=8`")
        if match[1] in {host.name for host in hosts}:
            raise UsageError(f"{path}:{number}: {match[1]} is there twice; give it more slots")
        hosts.append(SshHost(match[1], int(match[2] or 1)))
    if not hosts:
        raise UsageError(f"hostfile {path} names no host")
    return hosts
