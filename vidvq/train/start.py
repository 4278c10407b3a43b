"""What a run starts from: weights of another run, its own training state, the networks of its losses."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import read_checkpoint
from vidvq.metrics.perceptual import PerceptualDistance, load_perceptual
from vidvq.model import VideoTokenizer
from vidvq.storage import differences
from vidvq.train.config import TrainConfig
from vidvq.train.resume import Saved
from vidvq.train.schedule import is_used
from vidvq.train.world import World


def start_from(tokenizer: VideoTokenizer, config: TrainConfig, resumed: Path | None) -> dict[str, Any]:
    """Load the weights to start from; returns the types in which what stays untrained is stored.

    Args:
        tokenizer: is filled.
        config: of the run.
        resumed: the run's own checkpoint, where it goes on.

    Raises:
        ValueError: ``start_from`` is no checkpoint of such a model.
    """
    if config.start_from is None:
        return {}
    checkpoint = read_checkpoint(resumed or Path(config.start_from))
    wanted = config.model.to_dict()
    differing = list(differences("model", checkpoint.config["model"], wanted))
    if differing:
        raise UsageError(f"{checkpoint.path} has another model: {'; '.join(differing)}")
    tokenizer.load_inference_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()})
    if config.train_only == "all":
        return {}
    return {
        name: array.dtype for name, array in checkpoint.tensors.items() if name.startswith(("encoder.", "quantizer."))
    }


def fill(name: str, module: nn.Module, saved: Saved, folder: Path) -> None:
    """Give a network what a training state has of it.

    Raises:
        ValueError: the state is of another network.
    """
    try:
        module.load_state_dict(saved.tensors[name])
    except (KeyError, RuntimeError) as error:
        raise UsageError(
            f"{folder.parent} has another {name} than this config; give the run's own config, or another out="
        ) from error


def make_perceptual(config: TrainConfig, world: World) -> PerceptualDistance | None:
    """The network of the perceptual loss, where it has a weight."""
    if not is_used(config.loss.perceptual):
        return None
    net = config.loss.perceptual_net
    return load_perceptual(net.kind, net.net, net.backbone).to(world.device)
