"""Calls in a child process of a Ray worker. The worker reports how the child ended; Ray reports only that it ended.

The worker itself hardly needs memory or native code: if it dies, something killed it.
"""

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from typing import Any

from vidvq.runtime.feeder import Feeder
from vidvq.runtime.interface import WorkerDied

# Option of prctl(2): signal that this process receives when its parent ends.
_PR_SET_PDEATHSIG = 1
_feeder = Feeder()


def call_in_child(call: bytes, deadline_s: float) -> "Any | WorkerDied":
    """Call a function in the child process, which later calls reuse.

    Args:
        deadline_s: time limit (seconds), after which the child exits even inside a native library.

    Returns:
        The result; :class:`WorkerDied` if the child died.

    Raises:
        Exception: the exception that the function raised.
    """
    # The child may die after its result.
    *_, last = _feeder.feed(_serve_one, (_Pickled(call), os.getpid()), deadline_s)
    return last


class _Pickled:
    """A call that the child unpickles as it receives it: imports do not count towards the time limit."""

    def __init__(self, call: bytes) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self._call,)


def _load(call: bytes) -> Any:
    try:
        # The parent wrote it.
        return pickle.loads(call)  # noqa: S301
    except Exception as error:  # noqa: BLE001 (raised by the parent)
        return error


def _serve_one(request: tuple[Any, int]) -> Iterator[Any]:
    call, parent = request
    _end_with(parent)
    if isinstance(call, Exception):
        raise call
    function, item = call
    yield function(item)


def _end_with(parent: int) -> None:
    """End this process with its parent, on Linux even in the middle of a call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
