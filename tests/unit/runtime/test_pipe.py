"""Objects through a pipe: whole, or not at all."""

import os
from io import FileIO
from threading import Thread
from typing import Any

import numpy as np
import pytest

from vidvq.runtime.pipe import receive, send


def ends() -> tuple[FileIO, FileIO]:
    read, write = os.pipe()
    return FileIO(read, "r"), FileIO(write, "w")


def through(*values: Any) -> list[Any]:
    out, into = ends()
    with out, into:
        writer = Thread(target=lambda: [send(into, value) for value in values])
        writer.start()
        found = [receive(out) for _ in values]
        writer.join()
    return found


def test_objects_come_out_in_their_order_as_they_went_in():
    frames = np.random.default_rng(0).integers(0, 256, (33, 128, 208, 3), dtype=np.uint8)
    values = [("key", frames), None, frames[::2, :, ::-1], {"a": [frames[:1], np.zeros((0, 3))]}, ValueError("no")]
    first, nothing, strided, nested, error = through(*values)
    assert first[0] == "key" and np.array_equal(first[1], frames) and first[1].flags.writeable
    assert nothing is None
    assert np.array_equal(strided, frames[::2, :, ::-1])
    assert np.array_equal(nested["a"][0], frames[:1]) and nested["a"][1].shape == (0, 3)
    assert isinstance(error, ValueError) and error.args == ("no",)


@pytest.mark.parametrize("sent", [0, 1, 16, 40, 5000])
def test_a_message_that_breaks_off_is_the_end(sent, tmp_path):
    path = tmp_path / "message"
    with FileIO(path, "w") as file:
        send(file, np.zeros(10_000, np.uint8))
    start = path.read_bytes()[:sent]
    out, into = ends()
    with out:
        with into:
            into.write(start)
        with pytest.raises(EOFError):
            receive(out)


def test_who_writes_to_nobody_is_told():
    out, into = ends()
    out.close()
    with into, pytest.raises(BrokenPipeError):
        send(into, "anything")
