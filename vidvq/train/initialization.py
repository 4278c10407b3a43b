"""Initialization of a run: networks, weights of ``start_from``, and the state before the first step."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import Checkpoint, read_checkpoint, resolve_checkpoint
from vidvq.metrics.perceptual import PerceptualDistance, load_perceptual
from vidvq.model import Discriminator, TokenizerConfig, VideoTokenizer
from vidvq.storage import differences
from vidvq.train.config import TrainConfig
from vidvq.training.distributed import DistributedContext
from vidvq.training.schedule import is_used
from vidvq.training.training_state import Progress, TrainingState

# Settings that add optional parts to a decoder, with the prefixes of the names of their tensors.
_OPTIONAL_PARTS = {
    "upscale": "decoder.enlargement.",
    "lookahead": "decoder.lookahead.",
    "denoise": "decoder.lookahead.",
    "overlap": "decoder.overlap.",
    "blend": "decoder.blend.",
}


def build_networks(config: TrainConfig) -> tuple[VideoTokenizer, Discriminator]:
    """Build the networks with initial weights drawn from the seed; the global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return VideoTokenizer(config.model), Discriminator(config.discriminator)


def read_initial_checkpoint(config: TrainConfig, resumed: Path | None) -> Checkpoint | None:
    """Read the checkpoint that ``start_from`` names.

    Args:
        config: config of the run.
        resumed: checkpoint that the run resumes from, read instead: it contains the same frozen tensors.

    Returns:
        The checkpoint; None without ``start_from``.

    Raises:
        UsageError: the checkpoint is of another model, or cannot be read.
    """
    if config.start_from is None:
        return None
    checkpoint = read_checkpoint(resumed or resolve_checkpoint(config.start_from))
    try:
        theirs = TokenizerConfig.from_dict(checkpoint.config["model"]).to_dict()
    except (ValueError, TypeError) as error:
        raise UsageError(f"{checkpoint.path}: {error}") from error
    ours = config.model.to_dict()
    if resumed is None:
        # A decoder without these parts gets new ones.
        added = {name: ours["decoder"][name] for name in _OPTIONAL_PARTS if name in ours["decoder"]}
        theirs["decoder"] = added | theirs["decoder"]
    if config.new_quantizer and resumed is None:
        dim, known = config.model.quantizer.dim, theirs["quantizer"]["dim"]
        theirs["quantizer"] = ours["quantizer"]
        reason = f"model.linear={config.model.linear} uses the last channels" if config.model.linear else ""
        lookahead = config.model.decoder.lookahead
        if lookahead and any(name.startswith(_OPTIONAL_PARTS["lookahead"]) for name in checkpoint.tensors):
            reason = f"model.decoder.lookahead={lookahead} mixes all channels"
        if reason and dim != known:
            raise UsageError(f"model.quantizer.dim={dim} must be {known}, as in {checkpoint.path}: {reason}")
    differing = list(differences("model", theirs, ours))
    if differing:
        raise UsageError(f"{checkpoint.path} has another model: {'; '.join(differing)}")
    return checkpoint


def frozen_dtypes(config: TrainConfig, weights: Checkpoint | None) -> dict[str, Any]:
    """Return the NumPy types of tensors that ``train_only`` freezes; keeping them keeps the token fingerprint."""
    frozen = frozen_names(config)
    return {name: array.dtype for name, array in weights.tensors.items() if name.startswith(frozen)} if weights else {}


def frozen_names(config: TrainConfig) -> tuple[str, ...]:
    """Return the prefixes of the names of tensors that ``train_only`` freezes."""
    return () if config.train_only == "all" else ("encoder.", "quantizer.")


def initial_state(config: TrainConfig, weights: Checkpoint | None) -> TrainingState:
    """Create the training state before the first step, with tensors on the CPU.

    Args:
        config: config of the run.
        weights: checkpoint that provides the weights; None draws them from the seed.
    """
    tokenizer, discriminator = build_networks(config)
    if weights is not None:
        tensors = {name: torch.from_numpy(array) for name, array in weights.tensors.items()}
        prefixes, initial = tuple(_OPTIONAL_PARTS.values()), tokenizer.inference_state_dict()
        tensors = {name: tensor for name, tensor in initial.items() if name.startswith(prefixes)} | tensors
        if config.new_quantizer:
            tensors = _without_quantizer(tensors, tokenizer)
        tokenizer.load_inference_state_dict(tensors)
        if not config.new_quantizer:
            tokenizer.quantizer.skip_warmup()
    tensors = {
        "tokenizer": tokenizer.state_dict(),
        "average": tokenizer.inference_state_dict(),
        "usage": {},
        "generator_optimizer": {"steps": torch.tensor(0)},
    }
    if config.adversarial:
        tensors["discriminator"] = discriminator.state_dict()
        tensors["discriminator_optimizer"] = {"steps": torch.tensor(0)}
    return TrainingState(Progress(), tensors)


def _without_quantizer(tensors: dict[str, Tensor], tokenizer: VideoTokenizer) -> dict[str, Tensor]:
    """Replace the codebooks of a checkpoint by those of a tokenizer, and fit the layers next to them to its latents.

    Shared latent channels keep their weights. Further ones keep the initial weights of the encoder; the decoder starts
    to use them from zero, so that the reconstruction of continuous latents is unchanged.
    """
    initial = tokenizer.inference_state_dict()
    merged = {name: tensor for name, tensor in tensors.items() if not name.startswith("quantizer.")}
    merged |= {name: tensor for name, tensor in initial.items() if name.startswith("quantizer.")}
    axes = {"encoder.head.weight": 0, "encoder.head.bias": 0, "decoder.stem.weight": 1, "decoder.overlap.weight": 1}
    for name, axis in axes.items():
        if name not in tensors:
            continue
        theirs, ours = tensors[name].float(), initial[name].clone()
        shared = min(theirs.shape[axis], ours.shape[axis])
        if axis:
            ours.zero_()
        ours.narrow(axis, 0, shared).copy_(theirs.narrow(axis, 0, shared))
        merged[name] = ours
    return merged


def make_perceptual(config: TrainConfig, context: DistributedContext) -> PerceptualDistance | None:
    """Load the network of the perceptual and Gram losses; returns None if both are disabled.

    Raises:
        UsageError: the weights of the network are missing.
    """
    if not (is_used(config.loss.perceptual) or is_used(config.loss.gram)):
        return None
    net = config.loss.perceptual_net
    return load_perceptual(net.kind, net.net, net.backbone).to(context.device)
