"""Exceptions that the command line reports in one line. Any other exception is a bug in vidvq.

A message gives the value, the rule that it breaks, and the remedy.
"""


class UsageError(ValueError):
    """A usage error: a wrong setting, a missing or damaged input. Exit code 2."""


class JobStopped(Exception):
    """A job was stopped by a rule, such as a quality gate. Committed work is kept. Exit code 1."""


class JobTerminated(JobStopped):
    """A training run received SIGTERM and has saved its last step. Exit code 143."""


class WorkerLost(Exception):
    """A worker process died more often than it is restarted. Committed work is kept. Exit code 1."""


class StoreError(OSError):
    """A disk, object store or cluster does not respond, or refuses. Exit code 1."""
