"""Checkpoints of a run: resume from the newest complete one; keep the newest few and the best."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import TRAINING, list_steps, step_folder
from vidvq.log import warn
from vidvq.storage import attempt_path
from vidvq.training.distributed import DistributedContext, all_reduce_sum
from vidvq.training.training_state import TrainingState, find_damage, read_training_state, write_training_state

T = TypeVar("T")
Write = Callable[[Path, dict[str, np.ndarray], Path], T]
_ATTEMPT = ".training-"
# Sent to the other ranks instead of a step.
_ALL_DAMAGED = -1


def save_checkpoint(run: Path, state: TrainingState, keep: int, dtypes: Mapping[str, Any], write: Write[T]) -> T:
    """Write a checkpoint of the averaged weights and the training state, and remove old checkpoints. Rank 0 only.

    Args:
        run: run directory.
        state: state after a finished step.
        keep: number of newest checkpoints to keep; the best one is kept too.
        dtypes: NumPy types of tensors not stored as float32, by name; fingerprints cover the type.
        write: function of the checkpoint folder, the averaged weights and the folder of the training state; writes the
            checkpoint and returns its fingerprints.

    Returns:
        Return value of ``write``.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are unaffected.
    """
    step = state.progress.step
    folder, attempt = step_folder(run, step), run / "checkpoints" / f"{_ATTEMPT}{step:08d}"
    arrays = {
        name: tensor.detach().float().cpu().contiguous().numpy().astype(dtypes.get(name, np.float32), copy=False)
        for name, tensor in state.tensors["average"].items()
    }
    try:
        write_training_state(attempt, state)
        fingerprints = write(folder, arrays, attempt)
    except OSError:
        remove_partial_saves(run)
        raise
    best = state.progress.best
    _prune(run, step, keep, best[1] if best else None)
    return fingerprints


def latest_state(run: Path, context: DistributedContext) -> TrainingState | None:
    """Read the newest complete training state, the same on all ranks. Collective: call on every rank.

    Args:
        run: run directory.
        context: distributed context of this process.

    Returns:
        The state; None if there is no checkpoint.

    Raises:
        UsageError: the state cannot be read, or all checkpoints are damaged: starting over could cost days of work.
    """
    found = _newest_complete(run) if context.rank == 0 else 0
    step = int(all_reduce_sum(torch.tensor(found, device=context.device)))
    if step == _ALL_DAMAGED:
        raise UsageError(
            f"{run / 'checkpoints'} has no complete checkpoint to resume from; restore one from a copy, or start over "
            "with another out="
        )
    return read_training_state(step_folder(run, step) / TRAINING) if step else None


def remove_partial_saves(run: Path) -> None:
    """Remove partial files of saves that were killed or ran out of disk space. Rank 0 only."""
    for pattern in (f"{_ATTEMPT}*", "*.tmp.*"):
        for folder in (run / "checkpoints").glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def _newest_complete(run: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 if there are none at all; warn about damaged ones."""
    folders = list_steps(run, damaged=True)
    for folder in reversed(folders):
        damage = find_damage(folder / TRAINING)
        if damage is None:
            return _step_of(folder)
        warn(f"{folder} {damage}; looking for an earlier checkpoint")
    return _ALL_DAMAGED if folders else 0


def _prune(run: Path, step: int, keep: int, best: int | None) -> None:
    """Remove all checkpoints up to ``step`` except the ``keep`` newest ones and the one of step ``best``.

    Later ones are damaged, because the run has resumed from an earlier one, and do not count as newest.
    """
    done = [folder for folder in list_steps(run) if _step_of(folder) <= step]
    for folder in done[:-keep]:
        if _step_of(folder) != best:
            # Never half deleted under its own name, whenever this process is killed.
            shutil.rmtree(folder.replace(attempt_path(folder)), ignore_errors=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
