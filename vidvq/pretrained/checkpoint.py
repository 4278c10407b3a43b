"""Tokenizers to checkpoint folders and back."""

from pathlib import Path

import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import Fingerprints, find_checkpoint, read_checkpoint, write_checkpoint
from vidvq.formats.token_shard import TokenizerCard
from vidvq.model import Tokenizer, TokenizerConfig, VideoTokenizer
from vidvq.model.pixels import PREPROCESSING
from vidvq.pretrained.foreign import foreign_kind, load_foreign


def find_tokenizer(path: Path) -> Path:
    """The folder that :func:`load_tokenizer` loads: ``path``, or the newest checkpoint of a training run.

    Raises:
        ValueError: ``path`` is neither, nor a folder that :mod:`vidvq.pretrained.foreign` knows.
    """
    return path if foreign_kind(path) else find_checkpoint(path)


def load_tokenizer(path: Path) -> tuple[Tokenizer, TokenizerCard]:
    """Load a tokenizer in eval mode on the CPU, and the card that names it.

    Args:
        path: a checkpoint, a training run (its newest checkpoint), or a folder that
            :mod:`vidvq.pretrained.foreign` knows.

    Raises:
        ValueError: there is none, it is damaged, or its weights do not fit its config.
    """
    if foreign_kind(path):
        tokenizer, prints = load_foreign(path)
        return tokenizer.eval().requires_grad_(False), _card(tokenizer, prints)
    checkpoint = read_checkpoint(path)
    if checkpoint.config["preprocessing"] != PREPROCESSING:
        raise UsageError(
            f"{checkpoint.path} needs preprocessing {checkpoint.config['preprocessing']}, not {PREPROCESSING}"
        )
    try:
        tokenizer = VideoTokenizer(TokenizerConfig.from_dict(checkpoint.config["model"]))
        tokenizer.load_inference_state_dict(
            {name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"{checkpoint.path}: {error}") from error
    return tokenizer.eval().requires_grad_(False), _card(tokenizer, checkpoint.fingerprints)


def _card(tokenizer: Tokenizer, prints: Fingerprints) -> TokenizerCard:
    return TokenizerCard(
        token_fingerprint=prints.token,
        decoder_fingerprint=prints.decoder,
        codebooks=tuple(tokenizer.codebooks),
        temporal_factor=tokenizer.temporal_factor,
        spatial_factor=tokenizer.spatial_factor,
        preprocessing=PREPROCESSING,
    )


def save_tokenizer(
    folder: Path, tokenizer: VideoTokenizer, tensors: dict[str, Tensor], step: int, training: Path | None = None
) -> Fingerprints:
    """Write a checkpoint of a tokenizer with the given tensors (its own, or their running averages).

    Args:
        training: folder of the trainer's state; it is moved into the checkpoint.
    """
    arrays = {name: tensor.detach().float().contiguous().cpu().numpy() for name, tensor in tensors.items()}
    return write_checkpoint(folder, tokenizer.config.to_dict(), PREPROCESSING, arrays, step, training)
