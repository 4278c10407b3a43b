"""Loading and saving of tokenizers in checkpoint folders."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import (
    Fingerprints,
    find_checkpoint,
    read_checkpoint,
    resolve_checkpoint,
    write_checkpoint,
)
from vidvq.formats.plugin_reference import find_plugin
from vidvq.formats.token_shard import TokenizerCard
from vidvq.model import Tokenizer, TokenizerConfig, VideoTokenizer
from vidvq.model.pixels import PREPROCESSING
from vidvq.pretrained.adapters import adapter_kind, load_adapter
from vidvq.pretrained.plugins import load_plugin


def find_tokenizer(path: str | Path) -> Path:
    """Find what :func:`load_tokenizer` loads: ``path``, or the newest checkpoint of a training run.

    A reference to a plug-in is returned with absolute paths, for processes in another folder.

    Raises:
        UsageError: ``path`` is not a checkpoint, a run, a folder supported by :mod:`vidvq.pretrained.adapters`, or a
            reference as in :mod:`vidvq.formats.plugin_reference`.
    """
    path = resolve_checkpoint(path)
    if reference := find_plugin(path):
        return Path(str(reference.absolute()))
    return path if adapter_kind(path) else find_checkpoint(path)


@contextmanager
def _fp32_on_cpu() -> Generator[None, None, None]:
    """Create tensors in fp32 on the CPU. The caller may have set other defaults, such as bf16 for its own network."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(default)


@_fp32_on_cpu()
def load_tokenizer(path: str | Path) -> tuple[Tokenizer, TokenizerCard]:
    """Load a tokenizer in eval mode on the CPU, and its card.

    The defaults of torch for types and devices have no effect.

    Args:
        path: checkpoint folder, run directory (its newest checkpoint is loaded), folder supported by
            :mod:`vidvq.pretrained.adapters`, or reference as in :mod:`vidvq.formats.plugin_reference`.

    Returns:
        The tokenizer, and the card that identifies it.

    Raises:
        UsageError: there is no tokenizer, it is damaged, or its weights do not match its config or are not finite.
    """
    path = resolve_checkpoint(path)
    reference = find_plugin(path)
    if reference or adapter_kind(path):
        tokenizer, fingerprints = load_plugin(reference) if reference else load_adapter(path)
        return tokenizer.eval().requires_grad_(False), _card(tokenizer, fingerprints)
    checkpoint = read_checkpoint(path)
    if checkpoint.config["preprocessing"] != PREPROCESSING:
        raise UsageError(
            f"{checkpoint.path} needs preprocessing {checkpoint.config['preprocessing']}, not {PREPROCESSING}"
        )
    for name, array in checkpoint.tensors.items():
        if not np.isfinite(array).all():
            raise UsageError(f"{checkpoint.path}: the weights {name} are not finite; give an earlier checkpoint")
    try:
        config = TokenizerConfig.from_dict(checkpoint.config["model"])
        layers = sum(config.encoder.blocks) + sum(config.decoder.blocks) + config.decoder.denoise
        if layers > len(checkpoint.tensors):
            raise UsageError(f"the config has {layers} layers, more than there are tensors")
        tokenizer = VideoTokenizer(config)
        tokenizer.load_inference_state_dict(
            {name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
        )
    # Torch has RuntimeErrors for tensors that do not fit in memory.
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UsageError(f"{checkpoint.path}: {' '.join(str(error).split())[:300]}") from error
    return tokenizer.eval().requires_grad_(False), _card(tokenizer, checkpoint.fingerprints)


def _card(tokenizer: Tokenizer, fingerprints: Fingerprints) -> TokenizerCard:
    return TokenizerCard(
        token_fingerprint=fingerprints.token,
        decoder_fingerprint=fingerprints.decoder,
        codebooks=tuple(tokenizer.codebooks),
        temporal_factor=tokenizer.temporal_factor,
        spatial_factor=tokenizer.spatial_factor,
        preprocessing=PREPROCESSING,
    )


def save_tokenizer(folder: Path, tokenizer: VideoTokenizer, tensors: dict[str, Tensor], step: int) -> Fingerprints:
    """Write a checkpoint.

    Args:
        folder: checkpoint folder to create.
        tensors: inference tensors to save: those of the tokenizer, or their moving averages.
    """
    arrays = {name: tensor.detach().float().contiguous().cpu().numpy() for name, tensor in tensors.items()}
    return write_checkpoint(folder, tokenizer.config.to_dict(), PREPROCESSING, arrays, step)
