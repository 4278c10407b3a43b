"""Functions for `vidvq map`."""

import os
import time

import numpy as np

LOADED: list[str] = []


def motion(frames, info):
    """Mean change of pixels between frames, and properties of the arguments."""
    assert frames.dtype == np.uint8 and frames.shape == (info.num_frames, info.height, info.width, 3)
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() / 255
    return {"motion": change, "index": info.clip_index, "moves": bool(change > 0.007), "note": None}


def bad(frames, info):
    """Fails on most clips, in a different way on each."""
    match info.clip_index:
        case 1:
            return [1]
        case 2:
            raise KeyError("two\nlines")
        case 3:
            os.abort()
        case 4:
            return {"a": {}}
        case 5:
            time.sleep(60)
    return {"a": 1}


class Counter:
    """Counts its calls to show that it is built once. Not deterministic, which real functions must be."""

    def __init__(self, start=0):
        self.calls = start

    def __call__(self, frames, info):
        self.calls += 1
        return {"call": self.calls}


def factory(start=0):
    return Counter(start)


def unbuildable():
    raise OSError("no weights")


def not_a_function():
    return 3


def one_argument(frames):
    return {}


CONSTANT = 3
