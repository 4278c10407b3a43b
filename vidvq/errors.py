"""Exceptions that the command line knows how to report. Any other exception is a bug in vidvq.

Each message is one line: the value, the rule it breaks, and the remedy.
"""


class UsageError(ValueError):
    """A mistake of the user: a wrong setting, a missing or damaged input. Exit code 2."""


class JobStopped(Exception):
    """A job that one of its own rules ended, such as a quality gate. Committed work stays. Exit code 1."""


class WorkerLost(Exception):
    """A worker process that died more often than it is restarted. Committed work stays. Exit code 1."""


class StoreError(OSError):
    """A disk, object store or cluster that does not answer or refuses. Exit code 1."""
