"""Rate of frames from a decoding process to its parent: through shared memory, over that through a pipe."""

from collections.abc import Iterator
from statistics import median
from time import perf_counter

import numpy as np

from vidvq.runtime import Feeder, shared

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
            measured.append(_rate())
    shared.supported = supported
    return median(rates[True]) / median(rates[False])


def _rate() -> float:
    stream = Feeder().feed(messages, MESSAGES)
    # The process starts, and the memory is mapped.
    for _ in range(4):
        next(stream)
    started, received = perf_counter(), 0
    for frames in stream:
        received += getattr(frames, "nbytes", 0)
    return received / (perf_counter() - started)
