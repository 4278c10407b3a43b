"""Recovery of a training loop: bad batches are skipped, bad states are rolled back to the last checkpoint."""

from collections.abc import Callable
from typing import Protocol

from vidvq.errors import JobStopped
from vidvq.log import warn
from vidvq.training.distributed import DistributedContext
from vidvq.training.guard import Skipped
from vidvq.training.training_state import Progress, TrainingState


class Recoverable(Protocol):
    """A trainer, as far as recovery needs it.

    Attributes:
        progress: counters of the run; replaced by :meth:`load_state`.
    """

    progress: Progress

    def load_state(self, state: TrainingState) -> None:
        """Continue from a state."""
        ...


def skip_batch(position: Progress, skipped: Skipped, context: DistributedContext) -> None:
    """Continue with the next batch, and say so on rank 0."""
    if context.rank == 0:
        warn(f"step {position.step + 1}: batch {position.batch} is skipped: {skipped.reason}")
    position.batch += 1


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
        trainer: the trainer with the bad state.
        last_state: returns the state to continue from.
        problem: what is wrong, for messages.
        limit: maximum number of rollbacks of a run.
        remedy: what to change once the limit is reached.
        context: this process.

    Returns:
        Number of lost steps.

    Raises:
        JobStopped: the limit of rollbacks is reached.
    """
    bad = trainer.progress
    if bad.rollbacks >= limit:
        raise JobStopped(f"step {bad.step + 1}: {problem}, after {bad.rollbacks} rollbacks; {remedy}")
    trainer.load_state(last_state())
    position = trainer.progress
    position.batch, position.rollbacks = bad.batch + 1, bad.rollbacks + 1
    if context.rank == 0:
        warn(
            f"step {bad.step + 1}: {problem}; rolled back to step {position.step}, "
            f"continuing with batch {position.batch}"
        )
    return bad.step - position.step
