"""Arrays through shared memory: equal, reused only when they are gone, faster than the pipe, and gone after a kill."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from pickle import PickleBuffer
from time import process_time
from typing import Any

import numpy as np
import pytest

from vidvq.runtime import Feeder, WorkerDied, shared

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory files are Linux's")
CHUNK = (33, 256, 256, 3)


def chunks(count: int) -> Iterator[Any]:
    frames = np.arange(np.prod(CHUNK), dtype=np.uint32).astype(np.uint8).reshape(CHUNK)
    for index in range(count):
        frames[0, 0, 0, 0] = index % 256
        yield ("key", index, frames, np.full(3, index))


def strided(_: Any) -> Iterator[Any]:
    yield np.arange(1 << 20, dtype=np.uint8).reshape(64, -1)[::2, ::-1]


def many(_: Any) -> Iterator[Any]:
    yield [np.full(1 << 17, index, np.uint8) for index in range(20)]
    yield "end"


def memory_files() -> int:
    files = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            files += "memfd:vidvq" in os.readlink(entry)  # noqa: PTH115
        except OSError:
            continue
    return files


def test_arrays_stay_as_they_were_received():
    """Blocks of arrays that the consumer keeps are not written again."""
    kept = list(Feeder().feed(chunks, 12))
    for index, message in enumerate(kept):
        assert not isinstance(message, WorkerDied)
        key, number, frames, small = message
        assert (key, number, frames[0, 0, 0, 0]) == ("key", index, index)
        assert frames.shape == CHUNK and frames.flags.writeable and small.tolist() == [index] * 3


def test_memory_is_reused_once_arrays_are_gone():
    feeder = Feeder()
    for message in feeder.feed(chunks, 40):
        del message
    running = feeder._running
    assert len(running._blocks._mapped) <= 4


def test_other_layouts_and_many_arrays():
    (found,) = Feeder().feed(strided, None)
    assert np.array_equal(found, next(strided(None)))
    arrays, end = list(Feeder().feed(many, None))
    assert not isinstance(arrays, WorkerDied)
    assert [int(array.max()) for array in arrays] == list(range(20)) and end == "end"


def test_full_memory_sends_arrays_through_the_pipe(monkeypatch):
    writer = shared.BlockWriter(file := shared.create_file())
    monkeypatch.setattr(shared, "MAX_BYTES", shared.PAGE + (1 << 17))
    assert writer.put(PickleBuffer(np.zeros(1 << 17, np.uint8))) is not None
    assert writer.put(PickleBuffer(np.zeros(1 << 17, np.uint8))) is None
    assert writer.put(PickleBuffer(np.zeros(10, np.uint8))) is None
    os.close(file)


def test_nothing_is_left_after_a_kill():
    before = memory_files()
    feeder = Feeder()
    stream = feeder.feed(chunks, 1000)
    kept = next(stream)
    assert memory_files() > before
    running = stream.gi_frame.f_locals["running"]
    running.process.kill()
    last = list(stream)[-1]
    assert isinstance(last, WorkerDied)
    # The array is whole, and keeps its memory until it is gone.
    assert kept[2].sum() > 0
    del kept, last, running, stream, feeder
    gc.collect()
    assert memory_files() == before


def cpu_s(count: int) -> float:
    """CPU time to receive that many chunks (seconds): of this process, which has other work to do."""
    stream = Feeder().feed(chunks, count + 4)
    for _ in range(4):
        next(stream)
    started = process_time()
    for message in stream:
        del message
    return process_time() - started


def test_receiving_costs_less_than_through_the_pipe(monkeypatch):
    through_memory = cpu_s(20)
    monkeypatch.setattr(shared, "supported", lambda: False)
    assert through_memory < 0.5 * cpu_s(20)
