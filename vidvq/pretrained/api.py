"""Public API to load and save tokenizers, in folders and on the Hugging Face hub."""

from pathlib import Path
from types import ModuleType
from typing import Any

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import resolve_checkpoint
from vidvq.formats.plugin_reference import find_plugin
from vidvq.model import Tokenizer, VideoTokenizer
from vidvq.pretrained.checkpoint import load_tokenizer


def load_pretrained(name: str | Path, *, trainable: bool = False, **options: Any) -> Tokenizer:
    """Load a tokenizer on the CPU, and verify its weights against their fingerprint.

    Args:
        name: checkpoint folder or its URL, ``bundled`` for the one that ships with vidvq, run directory (its newest
            checkpoint is loaded), folder of a tokenizer that :mod:`vidvq.pretrained.adapters` supports, reference to a
            tokenizer of another package (:mod:`vidvq.formats.plugin_reference`), or ``owner/name`` of a repository on
            the Hugging Face hub (requires ``huggingface_hub``).
        trainable: return it in train mode with gradients, for fine-tuning; False returns it frozen, in eval mode.
        **options: arguments of ``huggingface_hub.snapshot_download``, such as ``revision`` or ``cache_dir``.

    Raises:
        UsageError: there is no tokenizer, it is damaged, or its weights do not match its config.
    """
    folder = resolve_checkpoint(str(name))
    if not folder.exists() and str(name).count("/") == 1 and not find_plugin(folder):
        folder = _hub(f"{name} is not a local folder; downloading from the hub").download(str(name), **options)
    tokenizer = load_tokenizer(folder)[0]
    if trainable:
        tokenizer.train().requires_grad_(True)
        if isinstance(tokenizer, VideoTokenizer):
            # The statistics of its training are not part of a checkpoint.
            tokenizer.quantizer.skip_warmup()
    return tokenizer


def save_pretrained(tokenizer: VideoTokenizer, folder: str | Path, **options: Any) -> None:
    """Write a checkpoint with a model card, and optionally upload it to the Hugging Face hub.

    Args:
        folder: folder of the checkpoint; its other files are kept.
        **options: arguments of ``ModelHubMixin.save_pretrained``; ``push_to_hub=True`` and ``repo_id`` upload it.

    Raises:
        UsageError: ``huggingface_hub`` is not installed.
    """
    _hub("a model card").HubTokenizer(tokenizer).save_pretrained(Path(folder), **options)


def _hub(purpose: str) -> ModuleType:
    try:
        from vidvq.pretrained import hub
    except ModuleNotFoundError as error:
        raise UsageError(f"{purpose} needs {error.name}; run `pip install 'vidvq[interop]'`") from error
    return hub
