"""Stopping and going on: the state of a run beside the weights that it gives away, and the signal that asks for it.

Safetensors and JSON, whole and without a rank or a ZeRO stage in them: a run may go on with another number of
processes, another stage or another precision. Randomness and data follow from the step and the batch, and so are not
state. Nothing is unpickled.
"""

import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import TRAINING, is_checkpoint, list_steps
from vidvq.log import warn
from vidvq.storage import pretty_json, read_json, sha256_bytes, sha256_file, write_atomic

FORMAT = "vidvq.training/1"
_STATE = "state.json"
_ATTEMPT = ".training-"


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: steps that are done.
        batch: the next batch of the data.
        average_updates: of the weight average.
        lecam: its two running means.
        losses: the guard's last good ones.
        rollbacks: how often the run went back.
        best: the best score so far and its step.
    """

    step: int = 0
    batch: int = 0
    average_updates: int = 0
    lecam: tuple[float, float] = (0.0, 0.0)
    losses: list[float] = field(default_factory=list)
    rollbacks: int = 0
    best: tuple[float, int] | None = None


@dataclass
class Saved:
    """What :func:`write_training` wrote.

    Attributes:
        tensors: by file: ``tokenizer``, ``average``, ``generator``, ``usage``, and with an adversary
            ``discriminator`` and ``critic``.
    """

    position: Position
    tensors: dict[str, dict[str, Tensor]]


class StopSignal:
    """Notes SIGTERM, which schedulers send before they kill, so that the run can save at the end of the step."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def write_training(run: Path, saved: Saved) -> Path:
    """Write the training state into a new folder, for a checkpoint to take over; rank 0 alone calls it."""
    folder = run / "checkpoints" / f"{_ATTEMPT}{saved.position.step:08d}"
    folder.mkdir(parents=True)
    digests: dict[str, str] = {}
    for name, tensors in saved.tensors.items():
        data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        digests[name] = sha256_bytes(data)
        write_atomic(folder / f"{name}.safetensors", data)
    state = {"format": FORMAT, "sha256": digests, **vars(saved.position)}
    write_atomic(folder / _STATE, pretty_json(state))
    return folder


def sweep(run: Path) -> None:
    """Remove what saves left behind that were killed or found the disk full; rank 0 alone calls it."""
    for pattern in (f"{_ATTEMPT}*", "*.tmp.*"):
        for folder in (run / "checkpoints").glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def find_training(run: Path) -> Path | None:
    """The newest training state of a run that is whole; says so of each newer one that is not."""
    for folder in reversed(list_steps(run)):
        problem = _find_damage(folder / TRAINING)
        if problem is None:
            return folder / TRAINING
        warn(f"{folder} {problem}; going back to the checkpoint before it")
    return None


def read_training(folder: Path) -> Saved:
    """Read what :func:`write_training` wrote.

    Raises:
        ValueError: it is damaged.
    """
    state = read_json(folder / _STATE)
    try:
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in state.pop("sha256")}
        del state["format"]
        return Saved(Position(**state), tensors)
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"{folder} is damaged: {error}; remove that checkpoint to use the one before") from error


def prune(run: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints of a run but the newest ``keep`` and the one of step ``best``."""
    for folder in list_steps(run)[:-keep]:
        if best is None or not folder.name.endswith(f"{best:08d}"):
            shutil.rmtree(folder)


def _find_damage(folder: Path) -> str | None:
    if not is_checkpoint(folder.parent) or not (folder / _STATE).is_file():
        return "has no training state"
    try:
        digests: dict[str, Any] = read_json(folder / _STATE)["sha256"]
    except (ValueError, KeyError, TypeError):
        return f"has a damaged {_STATE}"
    for name, digest in digests.items():
        path = folder / f"{name}.safetensors"
        if not path.is_file() or sha256_file(path) != digest:
            return f"has a torn {path.name}"
    return None


def seed_step(seed: int, step: int, batch: int, rank: int) -> None:
    """Make all randomness of a step a function of these."""
    state = f"{seed}/{step}/{batch}/{rank}".encode()
    torch.manual_seed(int(sha256_bytes(state)[:15], 16))
