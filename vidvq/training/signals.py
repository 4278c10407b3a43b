"""Handling of SIGTERM, which schedulers send before SIGKILL, so that a run can finish its step and save."""

import signal
from types import FrameType


class StopSignal:
    """Records SIGTERM, starting from its creation.

    Attributes:
        received: whether SIGTERM has arrived.
    """

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
