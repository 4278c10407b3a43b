"""Starts for the training of a decoder: a trained checkpoint with a further part, fitted to clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from vidvq import config as settings
from vidvq.formats.checkpoint import read_checkpoint, write_checkpoint
from vidvq.model import VideoTokenizer
from vidvq.pretrained import load_pretrained
from vidvq.train.config import TrainConfig

# Sets the part of a new tokenizer by the old one, directories of clips, and `every`.
Fit = Callable[[VideoTokenizer, VideoTokenizer, Sequence[Path], int], None]


@dataclass(frozen=True)
class DecoderPart:
    """A part of a decoder that is fitted to a trained tokenizer.

    Attributes:
        prefix: prefix of the names of its tensors.
        fit: function that fits it.
    """

    prefix: str
    fit: Fit

    def add(self, checkpoint: Path, clips: Sequence[Path], config: TrainConfig, out: Path, every: int) -> None:
        """Write a checkpoint of ``config.model`` with the weights of another and the fitted part.

        Args:
            checkpoint: trained checkpoint.
            clips: directories of clip shards to fit on.
            config: config of the training that follows.
            out: folder of the new checkpoint.
            every: fit on each clip whose number is a multiple of this.
        """
        old, stored = load_pretrained(checkpoint), read_checkpoint(checkpoint)
        assert isinstance(old, VideoTokenizer)
        torch.manual_seed(config.seed)
        new = VideoTokenizer(config.model).eval()
        known = {name: torch.from_numpy(array) for name, array in stored.tensors.items()}
        new.load_inference_state_dict(new.inference_state_dict() | known)
        self.fit(old, new, clips, every)
        fitted = {name: tensor.numpy() for name, tensor in new.inference_state_dict().items()}
        # Frozen weights keep their type, and with it the token fingerprint.
        kept = {name: array for name, array in stored.tensors.items() if not name.startswith(self.prefix)}
        write_checkpoint(out, config.model.to_dict(), stored.config["preprocessing"], fitted | kept, 0)

    def command(self, summary: str) -> click.Command:
        """Return the command line of :meth:`add`."""

        @click.command(help=summary)
        @click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
        @click.option("--clips", multiple=True, required=True, type=click.Path(exists=True, path_type=Path))
        @click.option("--config", required=True, help="Training config whose decoder has the part.")
        @click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new checkpoint.")
        @click.option(
            "--every", default=2, show_default=True, help="Fit on each clip whose number is a multiple of this."
        )
        def main(checkpoint: Path, clips: tuple[Path, ...], config: str, out: Path, every: int) -> None:
            self.add(checkpoint, clips, settings.load(TrainConfig, settings.find_config(config), []), out, every)

        return main
