"""Two hosts on one machine: network namespaces connected by a veth pair. Needs root and iproute2."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A network namespace, in which processes see its loopback, its address and the other host.

    Attributes:
        name: name of the namespace.
        address: IPv4 address.
        cable: name of its end of the veth pair.
    """

    name: str
    address: str
    cable: str

    def command(self, *arguments: object) -> list[str]:
        """The command line that runs a command in the namespace."""
        return ["ip", "netns", "exec", self.name, *map(str, arguments)]

    def pids(self) -> list[int]:
        """Ids of the processes in the namespace."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]

    def kill_all(self) -> None:
        """Kill all processes in the namespace, as a power cut does."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)

    def cut_cable(self) -> None:
        """Disconnect the hosts, so that not even the end of a connection is noticed."""
        self._set_cable("down")

    def mend_cable(self) -> None:
        """Undo :meth:`cut_cable`."""
        self._set_cable("up")

    def _set_cable(self, state: str) -> None:
        subprocess.run(["ip", "-n", self.name, "link", "set", self.cable, state], check=True)


def why_not() -> str | None:
    """Why this machine cannot create network namespaces; None if it can."""
    if not shutil.which("ip"):
        return "iproute2 is not installed"
    if os.geteuid():
        return "network namespaces need root"
    name = f"vvq{os.getpid() % 10000}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Yield two hosts that reach each other and nothing else."""
    stem = f"vvq{os.getpid() % 10000}"
    hosts = Host(f"{stem}a", "10.77.0.1", f"{stem}va"), Host(f"{stem}b", "10.77.0.2", f"{stem}vb")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for host in hosts:
            ip("netns", "add", host.name)
        cable = ["link", "add", hosts[0].cable, "netns", hosts[0].name, "type", "veth"]
        ip(*cable, "peer", "name", hosts[1].cable, "netns", hosts[1].name)
        for host in hosts:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.cable)
            ip("-n", host.name, "link", "set", host.cable, "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)
