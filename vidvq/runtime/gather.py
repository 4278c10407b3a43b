"""Waits for a Ray cluster to come up, or to end: `python -m vidvq.runtime.gather HOST:PORT [NODES | gone]`."""

import logging
import socket
import sys
import time

import ray

LIMIT_S = 120
_MISSES = 3


def gather(address: str, nodes: int) -> None:
    """Return when a cluster listens at an address, and has as many nodes; 0 joins none and asks no more.

    Raises:
        TimeoutError: it did not come up.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=LIMIT_S).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no Ray cluster listens at {address}: {error}") from error
            time.sleep(0.2)
    if not nodes:
        return
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    while (here := sum(node["Alive"] for node in ray.nodes())) < nodes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{here} of {nodes} machines joined the Ray cluster at {address}")
        time.sleep(0.5)


def wait_until_gone(address: str) -> None:
    """Return when a cluster listens no more."""
    host, _, port = address.rpartition(":")
    missed = 0
    while missed < _MISSES:
        try:
            socket.create_connection((host, int(port)), timeout=LIMIT_S).close()
            missed = 0
        except OSError:
            missed += 1
        time.sleep(1)


if __name__ == "__main__":
    if sys.argv[2:] == ["gone"]:
        sys.exit(wait_until_gone(sys.argv[1]))
    try:
        gather(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    except TimeoutError as timeout:
        sys.exit(str(timeout))
