"""Checkpoints of a run: resume from the newest complete one, keep the newest few and the best."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidvq.formats.checkpoint import TRAINING, Fingerprints, list_steps, step_folder, write_checkpoint
from vidvq.log import info, warn
from vidvq.model.pixels import PREPROCESSING
from vidvq.train.config import TrainConfig
from vidvq.train.distributed import DistributedContext, all_reduce_sum
from vidvq.train.training_state import TrainingState, find_damage, read_training_state, write_training_state

_ATTEMPT = ".training-"


def save_checkpoint(run: Path, config: TrainConfig, state: TrainingState, dtypes: dict[str, Any]) -> Fingerprints:
    """Write a checkpoint of the averaged weights and the training state, and remove old checkpoints. Rank 0 only.

    Args:
        run: run directory.
        config: config of the run.
        state: state returned by the ``state_dict`` method of a trainer.
        dtypes: NumPy types of tensors not stored as float32, by name; fingerprints cover the type.

    Returns:
        Fingerprints of the checkpoint.

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
        prints = write_checkpoint(folder, config.model.to_dict(), PREPROCESSING, arrays, step, attempt)
    except OSError:
        remove_partial_saves(run)
        raise
    info(f"saved {folder} (token {prints.token[:12]}, decoder {prints.decoder[:12]})")
    best = state.progress.best
    _prune(run, config.keep_checkpoints, best[1] if best else None)
    return prints


def latest_state(run: Path, context: DistributedContext) -> TrainingState | None:
    """Read the newest complete training state, the same on all ranks. Collective: call on every rank.

    Args:
        run: run directory.
        context: this process in the job.

    Returns:
        The state; None if there is no complete checkpoint.

    Raises:
        UsageError: the state cannot be read.
    """
    found = _newest_complete(run) if context.rank == 0 else 0
    step = int(all_reduce_sum(torch.tensor(float(found), device=context.device)))
    return read_training_state(step_folder(run, step) / TRAINING) if step else None


def remove_partial_saves(run: Path) -> None:
    """Remove partial files of saves that were killed or ran out of disk space. Rank 0 only."""
    for pattern in (f"{_ATTEMPT}*", "*.tmp.*"):
        for folder in (run / "checkpoints").glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def _newest_complete(run: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 if none; warn about newer damaged ones."""
    for folder in reversed(list_steps(run)):
        damage = find_damage(folder / TRAINING)
        if damage is None:
            return _step_of(folder)
        warn(f"{folder} {damage}; falling back to the previous checkpoint")
    return 0


def _prune(run: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints except the newest ``keep`` and that of step ``best``."""
    for folder in list_steps(run)[:-keep]:
        if _step_of(folder) != best:
            shutil.rmtree(folder)


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
