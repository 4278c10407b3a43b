"""SIGTERM, which schedulers send before SIGKILL, and Ctrl-C: a run finishes its step and saves."""

import signal
from types import FrameType
from typing import Self

from vidvq.errors import JobTerminated
from vidvq.log import info


class StopSignal:
    """Records SIGTERM and the first SIGINT (Ctrl-C) inside a ``with`` block. Another SIGINT interrupts at once.

    Attributes:
        received: whether one has arrived.
    """

    def __init__(self) -> None:
        self.received = self._interrupted = False

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.signal(signal.SIGTERM, self._receive)
        # Shells let background processes ignore it.
        if self._before[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def error(self, step: int) -> BaseException:
        """Return the exception that ends a run whose last step is saved.

        Args:
            step: the number of finished steps.
        """
        if self._interrupted:
            return KeyboardInterrupt()
        return JobTerminated(f"stopped by SIGTERM; step {step} is saved, run the same command to resume")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if number == signal.SIGINT:
            self._interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            info("finishing this step and saving it; Ctrl-C again stops at once")
