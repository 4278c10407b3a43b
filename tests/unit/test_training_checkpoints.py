"""Which checkpoints of a run are kept, and which one a run resumes from."""

import shutil
from pathlib import Path

import pytest
import torch

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import list_steps, write_checkpoint
from vidvq.training.checkpoints import latest_state, remove_partial_saves, save_checkpoint
from vidvq.training.distributed import DistributedContext
from vidvq.training.training_state import Progress, TrainingState

ALONE = DistributedContext(0, 1, torch.device("cpu"))


def save(run: Path, step: int, keep: int, best: int | None = None) -> list[int]:
    """Save a checkpoint of a step; returns the steps that are kept."""
    progress = Progress(step, best=None if best is None else (1.0, best))
    state = TrainingState(progress, {"average": {"encoder.weight": torch.ones(2)}})
    save_checkpoint(
        run, state, keep, {}, lambda folder, arrays, state: write_checkpoint(folder, {}, {}, arrays, step, state)
    )
    return [int(folder.name[-8:]) for folder in list_steps(run)]


def resumed(run: Path) -> int:
    state = latest_state(run, ALONE)
    return state.progress.step if state else 0


def test_the_newest_checkpoints_and_the_best_one_are_kept(tmp_path):
    kept = [save(tmp_path, step, keep=2, best=2) for step in range(1, 6)]
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]
    assert resumed(tmp_path) == 5
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_a_damaged_checkpoint_of_a_later_step_takes_no_place(tmp_path):
    for step in (3, 6):
        save(tmp_path, step, keep=2)
    (tmp_path / "checkpoints/step-00000006/training/average.safetensors").write_bytes(b"torn")
    assert resumed(tmp_path) == 3
    assert save(tmp_path, 4, keep=1) == [4, 6]
    assert resumed(tmp_path) == 4
    shutil.rmtree(tmp_path / "checkpoints/step-00000004")
    with pytest.raises(UsageError, match="has no complete checkpoint to resume from"):
        resumed(tmp_path)


def test_a_removal_that_is_interrupted_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **_: (Path(folder) / "fingerprint").unlink(missing_ok=True))
    save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert [folder.name for folder in list_steps(tmp_path, damaged=True)] == ["step-00000002"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    remove_partial_saves(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_steps_that_fp32_cannot_count_are_resumed(tmp_path):
    save(tmp_path, (1 << 24) + 1, keep=1)
    assert resumed(tmp_path) == (1 << 24) + 1
