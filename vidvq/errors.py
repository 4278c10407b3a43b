"""Exceptions that the command line reports in one line. Any other exception is a bug in vidvq.

A message gives the value, the rule that it breaks, and the remedy.
"""

import re

# CUDA and its libraries allocate memory beside torch, which then raises a plain RuntimeError.
_GPU_FULL = re.compile(r"(CUDA|Triton).*out of memory|CU\w+_ALLOC(ATION)?_FAILED")


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


def is_gpu_full(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU is full."""
    # torch.OutOfMemoryError, by name: torch is not imported here.
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and _GPU_FULL.search(str(error)) is not None
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of the machine is full."""
    # On CPUs torch raises a RuntimeError.
    on_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
    return on_cpu or is_gpu_full(error)
