"""The state of a training run, and its files: all that a run needs to resume to the same bits.

Safetensors and JSON, complete and independent of ranks and ZeRO stages: a run may resume with another number of
processes, another stage or another precision. Randomness and data are functions of the step and the batch, and so are
not state. Nothing is unpickled.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import is_checkpoint
from vidvq.storage import pretty_json, read_json, sha256_bytes, sha256_file, write_atomic

FORMAT = "vidvq.training/2"
_STATE = "state.json"
# vidvq.training/1 named the optimizers' files otherwise.
_OLD_NAMES = {"generator": "generator_optimizer", "critic": "discriminator_optimizer"}
_READABLE = {FORMAT, "vidvq.training/1"}


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: finished steps.
        batch: number of the next batch of the data.
        average_updates: updates of the weight average.
        lecam: running mean logits on real and on reconstructed video.
        losses: recent good losses, for the spike guard.
        rollbacks: rollbacks so far.
        best: the best score and its step.
    """

    step: int = 0
    batch: int = 0
    average_updates: int = 0
    lecam: tuple[float, float] = (0.0, 0.0)
    losses: list[float] = field(default_factory=list)
    rollbacks: int = 0
    best: tuple[float, int] | None = None


@dataclass(frozen=True)
class TrainingState:
    """Everything of a trainer that is saved.

    Attributes:
        progress: counters and running statistics.
        tensors: complete tensors by name, on any device, in parts: ``tokenizer``, ``average``, ``usage``,
            ``generator_optimizer``, and with an adversarial loss ``discriminator`` and ``discriminator_optimizer``.
        checkpoint: the checkpoint that it was read from.
    """

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    checkpoint: Path | None = None


def write_training_state(folder: Path, state: TrainingState) -> None:
    """Write a state into a new folder.

    Raises:
        OSError: the disk is full or not writable.
    """
    folder.mkdir(parents=True)
    digests: dict[str, str] = {}
    for name, tensors in state.tensors.items():
        data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        digests[name] = sha256_bytes(data)
        write_atomic(folder / f"{name}.safetensors", data)
    write_atomic(folder / _STATE, pretty_json({"format": FORMAT, "sha256": digests, **vars(state.progress)}))


def read_training_state(folder: Path) -> TrainingState:
    """Read the training folder of a checkpoint; also one of vidvq.training/1.

    Raises:
        UsageError: it is damaged, or of an unknown format.
    """
    state = read_json(folder / _STATE)
    if state.pop("format", None) not in _READABLE:
        raise UsageError(f"{folder / _STATE} is not of format {FORMAT}; resume with the vidvq that wrote it")
    try:
        names: list[str] = list(state.pop("sha256"))
        tensors = {_OLD_NAMES.get(name, name): load_file(folder / f"{name}.safetensors") for name in names}
        return TrainingState(Progress(**state), tensors, folder.parent)
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"{folder} is damaged: {error}; remove that checkpoint to use the one before") from error


def find_damage(folder: Path) -> str | None:
    """The fault of a training folder, or None where all its files match their digests."""
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
