"""Retries of an item after the death of the process that worked on it."""

from time import sleep

from vidvq.runtime.interface import WorkerDied

# Crashes and exceeded deadlines after which an item is to blame.
_MAX_DEATHS = 3
# Pauses after kills from outside, in which memory may become free (seconds).
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)


class Deaths:
    """Counts the deaths on an item.

    Args:
        crashes: number of deaths by crash or deadline after which to give up.
    """

    def __init__(self, crashes: int = _MAX_DEATHS) -> None:
        self._max_crashes = crashes
        self._left = self._crashes = self._kills = 0

    def give_up(self, death: WorkerDied, left: int = 1) -> bool:
        """Count a death; False if the item is to be tried again, after a pause if the process was killed.

        Args:
            left: number of items left, including the one that the process died on. A change resets the counts.
        """
        if left != self._left:
            self._left, self._crashes, self._kills = left, 0, 0
        if death.cause == "died":
            self._crashes += 1
            return self._crashes >= self._max_crashes
        self._kills += 1
        if self._kills > len(_PAUSES_S):
            return True
        sleep(_PAUSES_S[self._kills - 1])
        return False


def describe_death(death: WorkerDied, reason: str, detail: str) -> tuple[str, str]:
    """Reason and detail of an item that was given up: the given ones, unless its process was killed from outside."""
    if death.cause == "out_of_memory":
        return death.cause, "its process was killed for memory on every attempt; retry it with more memory per worker"
    if death.cause == "killed":
        return death.cause, "its process was killed from outside on every attempt; retry it"
    return reason, detail
