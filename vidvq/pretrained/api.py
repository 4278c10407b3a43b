"""Public API to load and save tokenizers, in folders and on the Hugging Face hub."""

from pathlib import Path
from types import ModuleType
from typing import Any

from vidvq.arguments import check_type
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import resolve_checkpoint
from vidvq.formats.plugin_reference import find_plugin
from vidvq.model import Tokenizer, VideoTokenizer
from vidvq.pretrained.checkpoint import load_tokenizer
from vidvq.storage import is_remote, resolve_path, store_errors


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
        UsageError: there is no tokenizer, it is damaged, its weights do not match its config, or there are options for
            a tokenizer that is not downloaded from the hub.
        StoreError: the object store cannot be reached.
    """
    with store_errors():
        folder = resolve_checkpoint(name)
        if not folder.exists() and str(name).count("/") == 1 and not find_plugin(folder):
            folder = _hub(f"{name} is not a local folder; downloading from the hub").download(str(name), **options)
        elif options:
            raise UsageError(
                f"{name} is not downloaded from the hub, so that {', '.join(options)} has no effect; leave it out"
            )
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
        tokenizer: the tokenizer.
        folder: local folder of the checkpoint; its other files are kept.
        **options: arguments of ``ModelHubMixin.save_pretrained``; ``push_to_hub=True`` and ``repo_id`` upload it.

    Raises:
        UsageError: ``huggingface_hub`` is not installed, the tokenizer is of another kind, or ``folder`` is a file or
            the URL of an object store.
    """
    check_type("tokenizer", tokenizer, VideoTokenizer)
    path = resolve_path(folder)
    if is_remote(path) or path.is_file():
        raise UsageError(f"{folder} is not a local folder; give one, and upload it where it is needed")
    _hub("a model card").HubTokenizer(tokenizer).save_pretrained(path, **options)


def _hub(purpose: str) -> ModuleType:
    try:
        from vidvq.pretrained import hub
    except ModuleNotFoundError as error:
        raise UsageError(f"{purpose} needs {error.name}; run `pip install 'vidvq[interop]'`") from error
    return hub
