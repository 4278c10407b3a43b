"""Ray nodes in network namespaces."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.namespaces import Host

# Token of the cluster, so that no other process on this machine can join it.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
# Tries of a node to find its head (one each 2 s), which is slow to come up on a busy machine.
PATIENCE = {"RAY_NUM_REDIS_GET_RETRIES": "150"}
RAY = Path(sys.executable).with_name("ray")


@contextmanager
def ray_node(host: Host, folder: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """Run a Ray node; it ends with its foreground process."""
    command = [RAY, "start", *arguments, f"--node-ip-address={host.address}", "--num-cpus=1", "--block"]
    command += ["--disable-usage-stats", "--object-store-memory=100000000"]
    with (folder / f"{host.name}.log").open("wb") as log:
        node = subprocess.Popen(
            host.command(*command), stdout=log, stderr=log, env=os.environ | TOKEN | PATIENCE, start_new_session=True
        )
        try:
            yield node
        finally:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def wait_for_both(one: Host, second: subprocess.Popen, log: Path) -> None:
    """Wait until the cluster of a node on ``one`` has the second node too; ``log`` is the latter's."""
    nodes = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print(len(ray.nodes()))"
    asked = one.command(sys.executable, "-c", nodes, f"{one.address}:6379")
    deadline = time.monotonic() + 300
    while second.poll() is None and time.monotonic() < deadline:
        # A client that starts before the head listens may never reach it, so it gets a part of the time.
        with suppress(subprocess.TimeoutExpired):
            found = subprocess.run(
                asked, capture_output=True, text=True, check=False, env=os.environ | TOKEN, timeout=60
            )
            if found.stdout.strip() == "2":
                return
        time.sleep(1)
    pytest.fail(f"the cluster did not come up: {log.read_text()[-2000:]}")
