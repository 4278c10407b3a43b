"""Rate of frames from a decoding process to its parent: through shared memory, over that through a pipe.

    python benchmarks/handover.py ADDRESS

prints the rate (GB/s) from a process on a Ray cluster instead, through Ray's object store. Run it on a node that has no
free CPU, so that the process is on another one.
"""

import sys
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from vidvq.runtime import Feeder, RuntimeConfig, open_runtime, shared

CHUNK = (33, 256, 256, 3)
ROUNDS, MESSAGES = 5, 40


def messages(count: int) -> Iterator[np.ndarray]:
    """Yield chunks of frames, as a decoding process does."""
    frames = np.zeros(CHUNK, np.uint8)
    for _ in range(count):
        yield frames


def handover_ratio() -> float:
    """Measure both ways in turns; returns the ratio of the medians."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    supported = shared.supported
    for _ in range(ROUNDS):
        for through_memory, measured in rates.items():
            shared.supported = (lambda: True) if through_memory else (lambda: False)
            measured.append(_rate(Feeder()))
    shared.supported = supported
    return median(rates[True]) / median(rates[False])


def cluster_rate(address: str) -> float:
    """Measure the way through the object store of a Ray cluster; returns the median (bytes per second)."""
    from vidvq.runtime.ray_feeder import RayFeeder, find_ready

    with open_runtime(RuntimeConfig(address=address)) as runtime:
        runtime.pool(2)
        feeder = RayFeeder()
        if not find_ready([feeder], 120):
            raise TimeoutError("no node of the cluster has a free CPU")
        return median(_rate(feeder) for _ in range(ROUNDS))


def _rate(feeder: Any) -> float:
    stream = feeder.feed(messages, MESSAGES)
    # The process starts, and the memory is mapped.
    for _ in range(4):
        next(stream)
    started, received = perf_counter(), 0
    for frames in stream:
        received += getattr(frames, "nbytes", 0)
    return received / (perf_counter() - started)


if __name__ == "__main__":
    # Processes import `messages` by the name of this module, which is another one in a script.
    from handover import cluster_rate

    print(f"{cluster_rate(sys.argv[1]) / 1e9:.2f} GB/s")
