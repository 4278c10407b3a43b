"""Recovery of a training loop: skips bad batches, and rolls bad states back to the last checkpoint."""

from collections.abc import Callable
from typing import Protocol

from vidvq.errors import JobStopped
from vidvq.log import warn
from vidvq.training.distributed import DistributedContext
from vidvq.training.guard import Skipped
from vidvq.training.training_state import Progress, TrainingState


class Recoverable(Protocol):
    """A trainer that can be rolled back.

    Attributes:
        progress: counters of the run; replaced by :meth:`load_state`.
    """

    progress: Progress

    def load_state(self, state: TrainingState) -> None:
        """Replace the training state."""
        ...


def skip_batch(progress: Progress, skipped: Skipped, context: DistributedContext) -> None:
    """Advance to the next batch, with a warning on rank 0."""
    if context.rank == 0:
        warn(f"step {progress.step + 1}: batch {progress.batch} is skipped: {skipped.reason}")
    progress.batch += 1


def roll_back(
    trainer: Recoverable,
    last_state: Callable[[], TrainingState],
    problem: str,
    *,
    limit: int,
    remedy: str,
    context: DistributedContext,
) -> int:
    """Load the last checkpoint and continue with the data after the bad batch. Collective: call on every rank.

    Args:
        trainer: trainer with the bad state.
        last_state: returns the state to continue from.
        problem: description of the problem, for messages.
        limit: maximum number of rollbacks of a run.
        remedy: advice for when the limit is reached.
        context: distributed context of this process.

    Returns:
        Number of lost steps.

    Raises:
        JobStopped: the maximum number of rollbacks was reached.
    """
    bad = trainer.progress
    if bad.rollbacks >= limit:
        raise JobStopped(f"step {bad.step + 1}: {problem}, after {bad.rollbacks} rollbacks; {remedy}")
    trainer.load_state(last_state())
    progress = trainer.progress
    progress.batch, progress.rollbacks = bad.batch + 1, bad.rollbacks + 1
    if context.rank == 0:
        warn(
            f"step {bad.step + 1}: {problem}; rolled back to step {progress.step}, "
            f"continuing with batch {progress.batch}"
        )
    return bad.step - progress.step
