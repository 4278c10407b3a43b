"""Checkpoints on the Hugging Face hub. The only module that imports huggingface_hub."""

from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError

from vidvq.errors import UsageError
from vidvq.model import VideoTokenizer
from vidvq.pretrained.checkpoint import save_tokenizer
from vidvq.storage import sync_folder

# Files of a checkpoint. Nothing else is downloaded, and nothing is unpickled.
_FILES = ["model.safetensors", "config.json", "fingerprint"]


def download(name: str, **options: Any) -> Path:
    """Download the checkpoint of a repository into the cache of the hub.

    Args:
        name: repository, as ``owner/name``.
        **options: arguments of ``huggingface_hub.snapshot_download``.

    Raises:
        UsageError: the repository does not exist, the hub cannot be reached, or an option is unknown.
    """
    try:
        signature(snapshot_download).bind(name, allow_patterns=_FILES, **options)
    except TypeError as error:
        raise UsageError(f"options of a download are those of huggingface_hub.snapshot_download: {error}") from error
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES, **options))
    except (OSError, HFValidationError) as error:
        detail = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{name} is not a local folder, and not a repository that can be downloaded: {detail}"
        ) from error


class HubTokenizer(ModelHubMixin, library_name="vidvq", tags=["video-tokenizer"]):
    """Writes a tokenizer as a repository for the hub: the files of a checkpoint and a model card."""

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        self.tokenizer = tokenizer

    def _save_pretrained(self, save_directory: Path) -> None:
        # Written aside: a checkpoint replaces its whole folder, and this one may be a clone with other files.
        with TemporaryDirectory(dir=save_directory) as temporary:
            checkpoint = Path(temporary, "checkpoint")
            save_tokenizer(checkpoint, self.tokenizer, self.tokenizer.inference_state_dict(), step=0)
            for name in _FILES:
                (checkpoint / name).replace(save_directory / name)
        sync_folder(save_directory)
