"""The start of a run: its networks, the weights of ``start_from``, and the state before the first step."""

from pathlib import Path
from typing import Any

import torch

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import Checkpoint, read_checkpoint
from vidvq.metrics.perceptual import PerceptualDistance, load_perceptual
from vidvq.model import Discriminator, VideoTokenizer
from vidvq.storage import differences
from vidvq.train.config import TrainConfig
from vidvq.train.distributed import DistributedContext
from vidvq.train.schedule import is_used
from vidvq.train.training_state import Progress, TrainingState


def build_networks(config: TrainConfig) -> tuple[VideoTokenizer, Discriminator]:
    """The networks with the initial weights of the run's seed; leaves the random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return VideoTokenizer(config.model), Discriminator(config.discriminator)


def read_start_weights(config: TrainConfig, resumed: Path | None) -> Checkpoint | None:
    """The checkpoint that ``start_from`` names, or where the run resumes its own, which has the same frozen tensors.

    Raises:
        UsageError: it is no checkpoint of this model.
    """
    if config.start_from is None:
        return None
    checkpoint = read_checkpoint(resumed or Path(config.start_from))
    differing = list(differences("model", checkpoint.config["model"], config.model.to_dict()))
    if differing:
        raise UsageError(f"{checkpoint.path} has another model: {'; '.join(differing)}")
    return checkpoint


def frozen_dtypes(config: TrainConfig, weights: Checkpoint | None) -> dict[str, Any]:
    """Numpy types of the tensors that ``train_only`` freezes, which keep their type and so the token fingerprint."""
    if weights is None or config.train_only == "all":
        return {}
    frozen = ("encoder.", "quantizer.")
    return {name: array.dtype for name, array in weights.tensors.items() if name.startswith(frozen)}


def initial_state(config: TrainConfig, weights: Checkpoint | None) -> TrainingState:
    """The state before the first step: the seed's weights, or those of ``start_from``; tensors on the CPU."""
    tokenizer, discriminator = build_networks(config)
    if weights is not None:
        tokenizer.load_inference_state_dict({name: torch.from_numpy(array) for name, array in weights.tensors.items()})
    tensors = {
        "tokenizer": tokenizer.state_dict(),
        "average": tokenizer.inference_state_dict(),
        "usage": {book.name: torch.zeros(2, book.size) for book in tokenizer.codebooks},
        "generator_optimizer": {"steps": torch.tensor(0)},
    }
    if config.adversarial:
        tensors["discriminator"] = discriminator.state_dict()
        tensors["discriminator_optimizer"] = {"steps": torch.tensor(0)}
    return TrainingState(Progress(), tensors)


def make_perceptual(config: TrainConfig, context: DistributedContext) -> PerceptualDistance | None:
    """The network of the perceptual loss; None where its weight is 0.

    Raises:
        UsageError: its weights are missing.
    """
    if not is_used(config.loss.perceptual):
        return None
    net = config.loss.perceptual_net
    return load_perceptual(net.kind, net.net, net.backbone).to(context.device)
