"""Runs one command on many hosts over ssh: `python -m vidvq.submit.fanout --hostfile HOSTS -- COMMAND...`.

Each host gets NODES, NODE_RANK, HEAD, NPROC and what steers a job of this environment. What they print comes out here,
after the host's name. The first host that fails ends them all; so does SIGTERM, which lets training save first.
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
from types import FrameType

from vidvq.submit.folder import steering_variables
from vidvq.submit.hostfile import SshHost, read_hostfile

# A host that is gone is noticed within BEAT_S x 3.
BEAT_S = 4
_SSH = [
    *["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"],
    *["-o", f"ServerAliveInterval={BEAT_S}", "-o", "ServerAliveCountMax=3"],
]
_LAST_HOSTS_S = 30
_SSH_FAILED = 255


class Connection:
    """The command on one host."""

    def __init__(self, host: SshHost, errand: dict[str, object]) -> None:
        self.host = host
        steering = [f"{name}={value}" for name, value in steering_variables().items()]
        remote = shlex.join(["env", *steering, sys.executable, "-m", "vidvq.submit.remote"])
        self.process = subprocess.Popen(
            [*_SSH, "--", host.name, remote],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A signal to this group is for this process, which tells the hosts.
            start_new_session=True,
        )
        self.say(json.dumps(errand))
        self.reader = threading.Thread(target=self._copy, daemon=True)
        self.reader.start()

    def say(self, line: str) -> None:
        """Send a line to what runs there; nothing where it has ended."""
        assert self.process.stdin
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return

    def end(self) -> None:
        """Hang up; what runs there is ended."""
        assert self.process.stdin
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            return

    def _copy(self) -> None:
        assert self.process.stdout
        name = self.host.name.encode()
        for line in self.process.stdout:
            # One write a line, so that hosts do not get between each other's.
            os.write(1, name + b": " + line.rstrip(b"\n") + b"\n")


def run(hosts: list[SshHost], port: int, command: list[str]) -> int:
    """Run a command on all hosts; returns 0, or the exit code of the first that failed."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    shared = {name: os.environ[name] for name in ("SHARED", "PYTHON", "CPUS") if os.environ.get(name)}
    head = f"{hosts[0].address}:{port}"
    connections = []
    for rank, host in enumerate(hosts):
        mine = {"NODES": str(len(hosts)), "NODE_RANK": str(rank), "HEAD": head, "NPROC": str(host.slots)}
        # By stdin: a command line can be read by all users of a machine.
        errand = {"environment": token | shared | mine, "folder": str(Path.cwd()), "command": command}
        connections.append(Connection(host, errand))

    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        for connection in connections:
            connection.say("stop")

    signal.signal(signal.SIGTERM, stop)
    code, hung_up, beaten, head_left = 0, False, time.monotonic(), None
    while running := [item for item in connections if item.process.poll() is None]:
        now = time.monotonic()
        failed = [item for item in connections if item.process.poll()]
        # One that was asked to stop is no failure; the others may still be saving.
        if failed and not code and not stopping.is_set():
            code = failed[0].process.returncode
            why = "is lost: ssh ended" if code == _SSH_FAILED else f"failed with exit code {code}"
            print(f"{failed[0].host.name} {why}; the job ends", flush=True)
        if connections[0] not in running and not stopping.is_set():
            head_left = head_left or now
        late = head_left is not None and now - head_left > _LAST_HOSTS_S
        if (code or late) and not hung_up:
            hung_up = True
            for connection in running:
                connection.end()
        if not hung_up and now - beaten > BEAT_S:
            beaten = now
            for connection in running:
                connection.say("beat")
        time.sleep(0.1)
    for connection in connections:
        connection.reader.join(5)
    if stopping.is_set():
        return 128 + signal.SIGTERM
    lost = [item for item in connections if item.process.returncode]
    return code or (lost[0].process.returncode if lost and not hung_up else 0)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hostfile", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    hosts = read_hostfile(asked.hostfile)
    return run(hosts[: asked.nodes or len(hosts)], asked.port, asked.command)


if __name__ == "__main__":
    sys.exit(main())
