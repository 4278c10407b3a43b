"""Checkpoints on the Hugging Face hub, by its own mixin. The only place that imports huggingface_hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from vidvq.model.checkpoint import save_tokenizer
from vidvq.model.tokenizer import VideoTokenizer

# What a checkpoint is made of; nothing else of a repository is fetched, and nothing of it is ever unpickled.
_FILES = ["model.safetensors", "config.json", "fingerprint"]


class HubTokenizer(ModelHubMixin, library_name="vidvq", tags=["video-tokenizer"]):
    """A tokenizer as the hub's mixin holds it: the files of a checkpoint are the repository."""

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        self.tokenizer = tokenizer

    def _save_pretrained(self, save_directory: Path) -> None:
        save_tokenizer(save_directory, self.tokenizer, self.tokenizer.inference_state_dict(), step=0)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> "HubTokenizer":
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=_FILES,
                )
            )
        return cls(VideoTokenizer.from_checkpoint(folder))
