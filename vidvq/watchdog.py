"""Time limit of the work of a process, enforced by ending the process, even inside a native library.

A hanging native library may hold the GIL; faulthandler's watchdog thread ends the process without it. One limit is in
force at a time, set by the main thread. Imports nothing of vidvq.
"""

import faulthandler
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Time left to a block whose limit ran out while it was paused (seconds).
_LEAST_S = 0.1
_ends: float | None = None


@contextmanager
def exit_after(seconds: float | None) -> Iterator[None]:
    """End this process if the block takes longer than ``seconds``; None for no limit."""
    if seconds is None:
        yield
        return
    _arm(seconds)
    try:
        yield
    finally:
        _disarm()


@contextmanager
def pause(seconds: float) -> Iterator[None]:
    """Exempt the block from the limit in force, if any, and end this process if it takes longer than ``seconds``."""
    ends = _ends
    if ends is None:
        yield
        return
    left = ends - time.monotonic()
    _arm(seconds)
    try:
        yield
    finally:
        _arm(max(left, _LEAST_S))


def _arm(seconds: float) -> None:
    global _ends
    _ends = time.monotonic() + seconds
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)


def _disarm() -> None:
    global _ends
    _ends = None
    faulthandler.cancel_dump_traceback_later()
