"""The public functions that load and save a tokenizer, in folders and on the Hugging Face hub."""

from pathlib import Path
from types import ModuleType
from typing import Any

from vidvq.errors import UsageError
from vidvq.model import Tokenizer, VideoTokenizer
from vidvq.pretrained.checkpoint import load_tokenizer


def load_pretrained(name: str | Path, **options: Any) -> Tokenizer:
    """Load a tokenizer in eval mode on the CPU. Its weights are verified against their fingerprint.

    Args:
        name: a checkpoint folder, a training run (its newest checkpoint), a folder of another library's tokenizer
            that :mod:`vidvq.pretrained.foreign` knows, or ``owner/name`` of a repository on the Hugging Face hub
            (needs ``huggingface_hub``).
        options: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` and the like, for the hub alone.

    Raises:
        ValueError: there is none, it is damaged, or its weights do not fit its config.
    """
    folder = Path(name)
    if not folder.exists() and str(name).count("/") == 1:
        folder = _hub(f"{name} is no local folder; fetching it from the hub").download(str(name), **options)
    return load_tokenizer(folder)[0]


def save_pretrained(tokenizer: VideoTokenizer, folder: str | Path, **options: Any) -> None:
    """Write a checkpoint folder with a model card; ``repo_id=`` and ``push_to_hub=True`` also upload it to the hub.

    Raises:
        ValueError: ``huggingface_hub`` is not installed.
    """
    _hub("a model card").HubTokenizer(tokenizer).save_pretrained(Path(folder), **options)


def _hub(purpose: str) -> ModuleType:
    try:
        from vidvq.pretrained import hub
    except ModuleNotFoundError as error:
        raise UsageError(f"{purpose} needs {error.name}; run `pip install 'vidvq[interop]'`") from error
    return hub
