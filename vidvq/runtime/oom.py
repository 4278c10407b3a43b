"""Counts of the kernel's out-of-memory kills, which say nothing about the work of the killed process."""

from pathlib import Path

_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/vmstat")


def count_oom_kills() -> int | None:
    """Number of processes that were killed for memory in the cgroup of this process, or on this machine.

    None if the kernel does not report it.
    """
    return _read(_events_file() or _MACHINE)


def _events_file() -> Path | None:
    """``memory.events`` of the cgroup (version 2); the root has none."""
    try:
        lines = _CGROUP.read_text().splitlines()
    except OSError:
        return None
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if group is None:
        return None
    # Inside a container the path of its cgroup may be that of the host, while the mounted root is its own.
    for folder in (_CGROUPS / group, _CGROUPS):
        if (folder / "memory.events").is_file():
            return folder / "memory.events"
    return None


def _read(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
