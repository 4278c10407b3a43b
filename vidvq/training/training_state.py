"""Training state and its files. Resuming from it is bit-exact.

Files are safetensors and JSON with complete tensors, independent of the number of ranks and the ZeRO stage, so a run
can resume with another number of processes or another stage. Randomness and data order are functions of step and batch
number and need no state. Nothing is unpickled.
"""

from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import is_checkpoint
from vidvq.formats.training_state import FORMAT, STATE, is_of_another_format, read_state_file, training_damage
from vidvq.storage import add_digest, pretty_json, sha256_bytes, write_atomic

# Names of optimizer files in vidvq.training/1.
_OLD_NAMES = {"generator": "generator_optimizer", "critic": "discriminator_optimizer"}


@dataclass
class Progress:
    """Counters and running statistics of a run.

    Attributes:
        step: number of finished steps.
        batch: number of the next data batch.
        average_updates: number of updates of the averaged weights.
        lecam: running mean logits on real and on reconstructed video.
        losses: recent good losses, for the spike guard.
        rollbacks: number of rollbacks so far.
        best: best evaluation score and its step; None before the first evaluation.
    """

    step: int = 0
    batch: int = 0
    average_updates: int = 0
    lecam: tuple[float, float] = (0.0, 0.0)
    losses: list[float] = field(default_factory=list)
    rollbacks: int = 0
    best: tuple[float, int] | None = None

    def record_score(self, score: float) -> bool:
        """Record an evaluation score (larger is better); return whether it is the best so far."""
        is_best = self.best is None or score > self.best[0]
        if is_best:
            self.best = (score, self.step)
        return is_best


@dataclass(frozen=True)
class TrainingState:
    """Complete state of a trainer.

    Attributes:
        progress: counters and running statistics.
        tensors: complete tensors by part and name, on any device. A part is a file: ``average`` for the averaged
            weights; the others depend on the trainer.
        checkpoint: checkpoint that the state was read from; None for a new state.
    """

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    checkpoint: Path | None = None


def write_training_state(folder: Path, state: TrainingState) -> None:
    """Write a state to a new folder.

    Args:
        folder: folder to create.
        state: state to write.

    Raises:
        OSError: the disk is full or not writable.
    """
    folder.mkdir(parents=True)
    digests: dict[str, str] = {}
    for name, tensors in state.tensors.items():
        data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        digests[name] = sha256_bytes(data)
        write_atomic(folder / f"{name}.safetensors", data)
    write_atomic(folder / STATE, pretty_json(add_digest({"format": FORMAT, "sha256": digests, **vars(state.progress)})))


def read_training_state(folder: Path) -> TrainingState:
    """Read the training state of a checkpoint, in the current format or in vidvq.training/1.

    Raises:
        UsageError: the files are damaged, or their format is unknown.
    """
    state = read_state_file(folder)
    try:
        tensors = {_OLD_NAMES.get(name, name): load_file(folder / f"{name}.safetensors") for name in state.sha256}
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{folder} is damaged: {error}; remove this checkpoint to resume from the previous one"
        ) from error
    counters = {name: value for name, value in vars(state).items() if name != "sha256"}
    return TrainingState(Progress(**counters), tensors, folder.parent)


def find_damage(folder: Path) -> str | None:
    """Describe the damage of a training folder; None if all files match their digests, or another version wrote it."""
    if not is_checkpoint(folder.parent) or not (folder / STATE).is_file():
        return "has no training state"
    return None if is_of_another_format(folder) else training_damage(folder)
