"""Starts for the training of a decoder: a trained checkpoint with further parts, fitted to clips."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch

from vidvq import config as settings
from vidvq.formats.checkpoint import Checkpoint
from vidvq.model import VideoTokenizer
from vidvq.train.config import TrainConfig

# Arguments: checkpoint, directories of clips, config of the training, folder of the new checkpoint, clips to skip.
AddParts = Callable[[Path, Sequence[Path], TrainConfig, Path, int], None]


def command(add: AddParts, summary: str) -> click.Command:
    """Return the command line of a function that adds parts to a checkpoint."""

    @click.command(help=summary)
    @click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
    @click.option("--clips", multiple=True, required=True, type=click.Path(exists=True, path_type=Path))
    @click.option("--config", required=True, help="Training config whose decoder has the parts.")
    @click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new checkpoint.")
    @click.option("--every", default=2, show_default=True, help="Fit on each clip whose number is a multiple of this.")
    def main(checkpoint: Path, clips: tuple[Path, ...], config: str, out: Path, every: int) -> None:
        add(checkpoint, clips, settings.load(TrainConfig, settings.find_config(config), []), out, every)

    return main


def with_parts(stored: Checkpoint, config: TrainConfig) -> VideoTokenizer:
    """Return a tokenizer of ``config.model`` with the weights of a checkpoint; its further parts are new."""
    torch.manual_seed(config.seed)
    tokenizer = VideoTokenizer(config.model).eval()
    known = {name: torch.from_numpy(array) for name, array in stored.tensors.items()}
    tokenizer.load_inference_state_dict(tokenizer.inference_state_dict() | known)
    return tokenizer
