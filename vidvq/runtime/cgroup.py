"""The control group of this process: its limit of CPUs, and how often the kernel killed a process in it for memory."""

from pathlib import Path

_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/vmstat")


def cpu_limit() -> float | None:
    """Number of CPUs that the cgroup of this process (a container, for example) may use; None without a limit."""
    try:
        quota, period = _find("cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        # The quota is "max", or this is version 1.
        return None


def count_oom_kills() -> int | None:
    """Number of processes that were killed for memory in the cgroup of this process, or on this machine.

    Such a kill says nothing about the work of the process. None if the kernel does not report it.
    """
    events = _find("memory.events")
    try:
        lines = (events if events.is_file() else _MACHINE).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _find(name: str) -> Path:
    """A file of the cgroup (version 2), which need not exist; the root of the machine has few."""
    try:
        lines = _CGROUP.read_text().splitlines()
    except OSError:
        lines = []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    # Inside a container the path of its cgroup may be that of the host, while the mounted root is its own.
    own = _CGROUPS / group / name
    return own if own.is_file() else _CGROUPS / name
