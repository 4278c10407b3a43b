"""SIGTERM, which schedulers send before they kill: the run finishes its step and saves."""

import signal
from types import FrameType


class StopSignal:
    """Records SIGTERM from its creation on.

    Attributes:
        received: whether SIGTERM has arrived.
    """

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
