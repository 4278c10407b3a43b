"""Waits for a Ray cluster to come up, or to go: `python -m vidvq.runtime.wait_for_cluster HOST:PORT [NODES | gone]`."""

# Ray's functions are typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import logging
import socket
import sys
import time

LIMIT_S = 120
_MISSES = 3


def wait_for_cluster(address: str, nodes: int) -> None:
    """Return when a cluster listens at ``HOST:PORT`` and has ``nodes`` nodes; 0 does not ask how many.

    Raises:
        TimeoutError: it is not there within ``LIMIT_S``.
    """
    deadline = time.monotonic() + LIMIT_S
    while (problem := _refusal(address)) is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no Ray cluster listens at {address}: {problem}")
        time.sleep(0.2)
    if not nodes:
        return
    # Slow to import, and not needed for the rest.
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    while (here := sum(node["Alive"] for node in ray.nodes())) < nodes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{here} of {nodes} machines joined the Ray cluster at {address}")
        time.sleep(0.5)


def wait_until_gone(address: str) -> None:
    """Return when nothing listens at ``HOST:PORT`` any more."""
    misses = 0
    while misses < _MISSES:
        misses = 0 if _refusal(address) is None else misses + 1
        time.sleep(1)


def _refusal(address: str) -> OSError | None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LIMIT_S).close()
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
