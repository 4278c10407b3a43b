"""The directory of a training run: its lock, and the config it belongs to."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vidvq import config as settings
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import list_steps
from vidvq.formats.owner import refuse_owned
from vidvq.storage import differences, exclusive_lock, write_atomic
from vidvq.training.distributed import DistributedContext, any_rank


@contextmanager
def locked_run_directory(run: Path, command: str, context: DistributedContext) -> Iterator[None]:
    """Hold the lock of a run directory, on rank 0. Collective: all ranks fail if another job holds it.

    Args:
        command: the command of the run, such as ``vidvq train``.

    Raises:
        UsageError: the directory belongs to another command, or another run holds the lock; rank 0 names which.
    """
    refused: UsageError | None = None
    with ExitStack() as stack:
        if context.rank == 0:
            try:
                refuse_owned(run, command, "out=")
                stack.enter_context(exclusive_lock(run, "wait for it, stop it, or use another out="))
            except UsageError as error:
                refused = error
        if any_rank(refused is not None, context):
            raise refused or UsageError(f"{run} is in use by another run; see the message of rank 0")
        yield


def record_config(run: Path, config: Any, may_change: Collection[str], remedy: str = "use another out=") -> None:
    """Write the resolved config to the run directory; reject a directory with checkpoints of another config.

    Args:
        run: run directory.
        config: config of the run (a dataclass).
        may_change: settings that may change on resume, by path, because they affect the execution, not the result.
        remedy: advice for a directory of another config, for the error message.

    Raises:
        UsageError: the directory belongs to a run with another config; names the differences.
    """
    path, mine = run / "config.yaml", settings.to_dict(config)
    # A run without checkpoints, such as one with a mistake in its config, has nothing to lose.
    if path.exists() and list_steps(run, damaged=True):
        # Settings missing from the config of an older vidvq get their defaults.
        theirs = settings.to_dict(settings.validate(type(config), settings.read_yaml(path), str(path)))
        found = differences("", theirs, mine)
        # The directory itself may be moved.
        differing = [line for line in found if line.partition(" ")[0] not in {*may_change, "out"}]
        if differing:
            raise UsageError(f"{run} belongs to a run with another config: {'; '.join(differing)}; {remedy}")
    write_atomic(path, settings.dump(config).encode())
