"""A tokenizer to a checkpoint folder and back."""

from pathlib import Path

import torch
from torch import Tensor

from vidvq.formats.checkpoint import Fingerprints, read_checkpoint, write_checkpoint
from vidvq.formats.token_shard import Codebook, TokenizerCard
from vidvq.model.pixels import PREPROCESSING
from vidvq.model.tokenizer import TokenizerConfig, VideoTokenizer


def load_tokenizer(path: Path) -> tuple[VideoTokenizer, TokenizerCard]:
    """Load a checkpoint, or the newest one of a training run, in eval mode on the CPU, and the card that names it.

    Raises:
        ValueError: there is none, it is damaged, or its weights do not fit its config.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.config["preprocessing"] != PREPROCESSING:
        raise ValueError(
            f"{checkpoint.path} wants preprocessing {checkpoint.config['preprocessing']}, not {PREPROCESSING}"
        )
    try:
        tokenizer = VideoTokenizer(TokenizerConfig.from_dict(checkpoint.config["model"]))
        tokenizer.load_inference_state_dict(
            {name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    card = TokenizerCard(
        token_fingerprint=checkpoint.fingerprints.token,
        decoder_fingerprint=checkpoint.fingerprints.decoder,
        codebooks=tuple(Codebook(book.name, book.size, book.offset) for book in tokenizer.codebooks),
        temporal_factor=tokenizer.temporal_factor,
        spatial_factor=tokenizer.spatial_factor,
        preprocessing=PREPROCESSING,
    )
    return tokenizer.eval().requires_grad_(False), card


def save_tokenizer(
    folder: Path, tokenizer: VideoTokenizer, tensors: dict[str, Tensor], step: int, training: Path | None = None
) -> Fingerprints:
    """Write a checkpoint of a tokenizer with the given tensors (its own, or their running averages).

    Args:
        training: a folder of the trainer's own state, moved into the checkpoint.
    """
    arrays = {name: tensor.detach().float().contiguous().cpu().numpy() for name, tensor in tensors.items()}
    return write_checkpoint(folder, tokenizer.config.to_dict(), PREPROCESSING, arrays, step, training)
