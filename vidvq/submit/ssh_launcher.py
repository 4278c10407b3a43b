"""Runs one command on many hosts over ssh: `python -m vidvq.submit.ssh_launcher --hostfile HOSTS -- COMMAND...`.

Each host receives NODES, NODE_RANK, HEAD, NPROC and the forwarded variables of this environment. All output is printed
here, each line prefixed with its host. The first host that fails ends the job on all hosts. SIGTERM stops the job and
lets training save.
"""

import argparse
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from vidvq.errors import UsageError
from vidvq.submit.hostfile import SshHost, read_hostfile
from vidvq.submit.job_directory import forwarded_variables

# A lost host is noticed within 3 intervals.
HEARTBEAT_S = 4
_SSH = [
    *["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"],
    *["-o", f"ServerAliveInterval={HEARTBEAT_S}", "-o", "ServerAliveCountMax=3"],
]
# How long the other hosts may run after host 0 has finished.
_LAST_HOSTS_S = 30
_SSH_FAILED = 255


class Connection:
    """The command running on one host.

    Args:
        request: the command, its folder and its environment; see :mod:`vidvq.submit.ssh_agent`.
    """

    def __init__(self, host: SshHost, request: dict[str, object]) -> None:
        self.host = host
        forwarded = [f"{name}={value}" for name, value in forwarded_variables().items()]
        agent = shlex.join(["env", *forwarded, sys.executable, "-m", "vidvq.submit.ssh_agent"])
        self.process = subprocess.Popen(
            [*_SSH, "--", host.name, agent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A signal to this process group must reach the launcher alone, which notifies the hosts.
            start_new_session=True,
        )
        self.send(json.dumps(request))
        self.reader = threading.Thread(target=self._copy_output, daemon=True)
        self.reader.start()

    def send(self, line: str) -> None:
        """Send a line to the agent; does nothing if the agent has exited."""
        assert self.process.stdin
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return

    def close(self) -> None:
        """Close the connection, upon which the agent kills the command."""
        assert self.process.stdin
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            return

    def _copy_output(self) -> None:
        assert self.process.stdout
        name = self.host.name.encode()
        for line in self.process.stdout:
            # One write per line, so that the lines of several hosts do not interleave.
            os.write(1, name + b": " + line.rstrip(b"\n") + b"\n")


def run(hosts: list[SshHost], port: int, command: list[str]) -> int:
    """Run a command on all hosts.

    Args:
        hosts: the hosts; the first one is the rendezvous.

    Returns:
        0, the exit code of the first host that failed, or 143 after SIGTERM.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    shared = {name: os.environ[name] for name in ("SHARED", "PYTHON", "CPUS") if os.environ.get(name)}
    head = f"{hosts[0].address}:{port}"
    connections = []
    for rank, host in enumerate(hosts):
        own = {"NODES": str(len(hosts)), "NODE_RANK": str(rank), "HEAD": head, "NPROC": str(host.slots)}
        # Sent over stdin, since all users of a machine can read its command lines.
        request = {"environment": token | shared | own, "folder": str(Path.cwd()), "command": command}
        connections.append(Connection(host, request))

    stopping, told = threading.Event(), False
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    code, closed, last_heartbeat, head_ended = 0, False, time.monotonic(), None
    while running := [item for item in connections if item.process.poll() is None]:
        now = time.monotonic()
        if stopping.is_set() and not told:
            told = True
            for connection in running:
                connection.send("stop")
        failed = [item for item in connections if item.process.poll()]
        # A host that was asked to stop has not failed; the others may still be saving.
        if failed and not code and not stopping.is_set():
            code = failed[0].process.returncode
            why = "is lost: ssh ended" if code == _SSH_FAILED else f"failed with exit code {code}"
            print(f"{failed[0].host.name} {why}; the job ends", flush=True)
        if connections[0] not in running and not stopping.is_set():
            head_ended = head_ended or now
        overdue = head_ended is not None and now - head_ended > _LAST_HOSTS_S
        if (code or overdue) and not closed:
            closed = True
            for connection in running:
                connection.close()
        if not closed and now - last_heartbeat > HEARTBEAT_S:
            last_heartbeat = now
            for connection in running:
                connection.send("heartbeat")
        time.sleep(0.1)
    for connection in connections:
        connection.reader.join(5)
    if stopping.is_set():
        return 128 + signal.SIGTERM
    lost = [item for item in connections if item.process.returncode]
    return code or (lost[0].process.returncode if lost and not closed else 0)


def main() -> int:
    """Parse the command line and run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hostfile", type=Path, required=True, help="lines of `host slots=8`")
    parser.add_argument("--nodes", type=int, default=0, help="number of hosts to use, from the top; 0 for all")
    parser.add_argument("--port", type=int, required=True, help="port of the rendezvous, on the first host")
    parser.add_argument("command", nargs="+", help="command line to run on each host")
    arguments = parser.parse_args()
    try:
        hosts = read_hostfile(arguments.hostfile)
    except UsageError as error:
        parser.error(str(error))
    return run(hosts[: arguments.nodes or len(hosts)], arguments.port, arguments.command)


if __name__ == "__main__":
    sys.exit(main())
