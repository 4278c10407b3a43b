"""Reads hostfiles in DeepSpeed's format: lines of ``host slots=8``."""

import re
from dataclasses import dataclass
from pathlib import Path

from vidvq.errors import UsageError

# A host never starts with a dash, so ssh cannot take it for an option.
_LINE = re.compile(r"([A-Za-z0-9_][\w.@-]*)(?:\s+slots=(\d+))?")


@dataclass(frozen=True)
class SshHost:
    """One host.

    Attributes:
        name: ssh destination, ``[user@]host``.
        slots: training processes to start on the host.
    """

    name: str
    slots: int

    @property
    def address(self) -> str:
        """The host without the user, as the other hosts reach it."""
        return self.name.rpartition("@")[2]


def read_hostfile(path: Path) -> list[SshHost]:
    """Read a hostfile.

    Returns:
        The hosts in file order; slots default to 1.

    Raises:
        UsageError: the file cannot be read, or a line is malformed; names the line.
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
            raise UsageError(f"{path}:{number}: {match[1]} is listed twice; list it once with more slots")
        hosts.append(SshHost(match[1], int(match[2] or 1)))
    if not hosts:
        raise UsageError(f"hostfile {path} lists no hosts; write one `host slots=8` per line")
    return hosts
