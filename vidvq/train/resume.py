"""Stopping and going on: the state of a run beyond its weights, and the signal that asks for it.

Weights, optimizers and schedules are saved by DeepSpeed; the weight average, LeCAM and the random state by us, as
safetensors and JSON, one file per rank. Where the data stands follows from the step alone.
"""

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save

from vidvq.storage import pretty_json, read_json, write_atomic
from vidvq.train.ema import WeightAverage
from vidvq.train.engine import World, any_rank, load_engine, save_engine, wait_for_all
from vidvq.train.losses import LeCam

_RANDOM = "random.cpu"


@dataclass
class RankState:
    """What one rank needs to go on, beside its engines."""

    step: int
    average: WeightAverage
    lecam: LeCam


class StopSignal:
    """Notes SIGTERM, which schedulers send before they kill, so that the run can save at the end of the step."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def save_training(folder: Path, engines: dict[str, Any], state: RankState, world: World) -> None:
    """Write the training state of all ranks into a new folder; every rank calls it, and all are done at the end."""
    if world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    wait_for_all(world)
    for name, engine in engines.items():
        save_engine(engine, folder / name)
    tensors = {f"average.{name}": tensor.contiguous() for name, tensor in state.average.state_dict().items()}
    write_atomic(folder / f"rank-{world.rank}.safetensors", save(tensors | {_RANDOM: torch.get_rng_state()}))
    scalars = {
        "step": state.step,
        "ranks": world.size,
        "average_updates": state.average.updates,
        "lecam": [state.lecam.real, state.lecam.fake],
    }
    write_atomic(folder / f"rank-{world.rank}.json", pretty_json(scalars))
    wait_for_all(world)


def load_training(folder: Path, engines: dict[str, Any], state: RankState, world: World) -> bool:
    """Read what :func:`save_training` wrote into the engines and ``state``; every rank calls it.

    Returns:
        False where the folder lacks a file of some rank, and nothing was read.

    Raises:
        ValueError: it was written by another number of ranks, or is damaged.
    """
    path = folder / f"rank-{world.rank}.json"
    if any_rank(not path.is_file(), world):
        return False
    scalars = read_json(path)
    if scalars["ranks"] != world.size:
        raise ValueError(f"{folder} was written by {scalars['ranks']} ranks, this run has {world.size}; start as many")
    for name, engine in engines.items():
        load_engine(engine, folder / name)
    tensors = load_file(folder / f"rank-{world.rank}.safetensors")
    average = {name.removeprefix("average."): tensor for name, tensor in tensors.items() if name != _RANDOM}
    state.average.load_state_dict(average, scalars["average_updates"])
    state.lecam.real, state.lecam.fake = scalars["lecam"]
    torch.set_rng_state(tensors[_RANDOM])
    state.step = scalars["step"]
    return True
