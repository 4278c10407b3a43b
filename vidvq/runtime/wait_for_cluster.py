"""Waits for a Ray cluster to start or stop: `python -m vidvq.runtime.wait_for_cluster HOST:PORT [NODES | gone]`."""

# Ray's functions are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import logging
import socket
import sys
import time

LIMIT_S = 300
_MISSES = 3
# Time limit of one connection (seconds); a host that is down does not answer at all.
_CONNECT_LIMIT_S = 10.0


def wait_for_cluster(address: str, nodes: int) -> None:
    """Block until a cluster is up.

    Args:
        address: ``HOST:PORT`` of the cluster's head.
        nodes: number of nodes that must have joined; 0 to wait for the head's port alone.

    Raises:
        TimeoutError: the cluster is not up after ``LIMIT_S`` seconds.
    """
    deadline = time.monotonic() + LIMIT_S
    while (problem := _refusal(address)) is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no Ray cluster listens at {address}: {problem}")
        time.sleep(0.2)
    if not nodes:
        return
    # Slow to import, and not needed above.
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{alive} of {nodes} nodes joined the Ray cluster at {address} within {LIMIT_S} s")
        time.sleep(0.5)


def wait_until_gone(address: str) -> None:
    """Block until nothing listens at ``HOST:PORT``."""
    misses = 0
    while misses < _MISSES:
        misses = 0 if _refusal(address) is None else misses + 1
        time.sleep(1)


def _refusal(address: str) -> OSError | None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_LIMIT_S).close()
    except OSError as error:
        return error
    return None


if __name__ == "__main__":
    if sys.argv[2:] == ["gone"]:
        sys.exit(wait_until_gone(sys.argv[1]))
    try:
        wait_for_cluster(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    except TimeoutError as timeout:
        sys.exit(str(timeout))
