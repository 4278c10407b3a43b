"""Give a trained tokenizer a linear path beside its networks, and other codebooks to be trained.

    python benchmarks/linear_path.py CHECKPOINT --clips CLIPS --config CONFIG --out OUT

The latent channels of the checkpoint are reduced to their principal directions. The linear channels are the
reduced-rank regression (Izenman 1975) of what the decoder misses on the features of the encoder and the pixels of the
block: the least-squares prediction, projected to its principal directions. Unquantized reconstructions improve at once.
Codebooks have initial values only: the checkpoint is a start for `vidvq train ... start_from=OUT`.
"""

from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch import Tensor

from vidvq import config as settings
from vidvq.formats.checkpoint import read_checkpoint, write_checkpoint
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_plan
from vidvq.model import VideoTokenizer
from vidvq.model.groups import replicate_first_frame
from vidvq.model.layers import TemporalCache
from vidvq.model.pixels import to_video
from vidvq.pretrained import load_pretrained
from vidvq.train.config import TrainConfig
from vidvq.video.decode import decode_clip

# Errors in linear channels of this scale cost as much pixel energy as errors in those of the networks (size `small`).
SCALE = 0.6


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--clips", required=True, type=click.Path(exists=True, path_type=Path), help="Clip shards to fit on.")
@click.option("--config", required=True, help="Training config with `model.linear`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new checkpoint.")
@click.option("--every", default=3, show_default=True, help="Fit on every so-manieth clip.")
def main(checkpoint: Path, clips: Path, config: str, out: Path, every: int) -> None:
    """Write a checkpoint with a linear path."""
    extend(checkpoint, clips, settings.load(TrainConfig, settings.find_config(config), []), out, every)


def extend(checkpoint: Path, clips: Path, config: TrainConfig, out: Path, every: int) -> None:
    """Write a checkpoint of ``config.model`` with the networks of another and a fitted linear path.

    Args:
        checkpoint: trained checkpoint without a linear path.
        clips: clip shards to fit on.
        config: config of the training that follows.
        out: folder of the new checkpoint.
        every: fit on each clip whose number is a multiple of this.
    """
    old = load_pretrained(checkpoint)
    assert isinstance(old, VideoTokenizer)
    torch.manual_seed(config.seed)
    new = VideoTokenizer(config.model).eval()
    kept, linear = config.model.quantizer.dim - config.model.linear, config.model.linear
    assert new.encoder.linear is not None and new.decoder.linear is not None
    with torch.inference_mode():
        theirs, tensors = old.inference_state_dict(), dict(new.inference_state_dict())
        for name, tensor in theirs.items():
            if not name.startswith("quantizer.") and tensor.shape == tensors[name].shape:
                tensors[name].copy_(tensor)
        directions = _principal_directions(old, clips, every)[:, :kept]
        for name in ("encoder.head.weight", "encoder.head.bias"):
            tensors[name].zero_()[:kept] = directions.T @ theirs[name].float()
        stem = torch.einsum("oikl,ij->ojkl", theirs["decoder.stem.weight"].float(), directions)
        tensors["decoder.stem.weight"].zero_()[:, :kept] = stem
        new.encoder.linear.weight.zero_()
        new.decoder.linear.weight.zero_()
        analysis, synthesis = _regress(new, clips, every, linear)
        features = new.encoder.head.in_features
        tensors["encoder.head.weight"][kept:] = SCALE * analysis[:features].T
        tensors["encoder.linear.weight"].copy_(SCALE * analysis[features:-1].T)
        tensors["encoder.head.bias"][kept:] = SCALE * analysis[-1]
        tensors["decoder.linear.weight"].copy_(synthesis / SCALE)
    arrays = {name: tensor.detach().float().numpy().copy() for name, tensor in new.inference_state_dict().items()}
    write_checkpoint(out, config.model.to_dict(), read_checkpoint(checkpoint).config["preprocessing"], arrays, 0)


def read_videos(tokenizer: VideoTokenizer, clips: Path, every: int) -> Iterator[Tensor]:
    """Yield each clip whose number is a multiple of ``every``, as complete groups ``1 c (g r) h w``."""
    number = 0
    for shard in read_plan(clips).shard_names():
        for key, media, _ in read_clips(clips / shard):
            number += 1
            if number % every == 0:
                yield replicate_first_frame(tokenizer.pad(to_video(decode_clip(media, key))), tokenizer.temporal_factor)


def _principal_directions(tokenizer: VideoTokenizer, clips: Path, every: int) -> Tensor:
    """Return the eigenvectors of the second moments of latents, the largest first, as columns ``d d``."""
    moments = torch.zeros(tokenizer.config.quantizer.dim, tokenizer.config.quantizer.dim, dtype=torch.double)
    for video in read_videos(tokenizer, clips, every):
        latents = tokenizer.encoder(video, TemporalCache()).transpose(0, 1).flatten(1).double()
        moments += latents @ latents.T
    return torch.linalg.eigh(moments).eigenvectors.flip(1).float()


def _regress(tokenizer: VideoTokenizer, clips: Path, every: int, rank: int) -> tuple[Tensor, Tensor]:
    """Fit the pixels that the decoder misses.

    Returns:
        Analysis ``(features + pixels + 1) rank`` and orthonormal synthesis ``pixels rank``. Their product predicts a
        block from ``[features, pixels, 1]``.
    """
    seen: list[Tensor] = []
    handle = tokenizer.encoder.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    blocks, inputs, products, count = tokenizer.encoder.blocks, 0, 0, 0
    assert blocks is not None
    for video in read_videos(tokenizer, clips, every):
        latents = tokenizer.decoder.extend(tokenizer.encoder(video, TemporalCache()))
        missed = video - tokenizer.decoder(latents, TemporalCache())
        wanted = blocks(missed).flatten(0, -2).double()
        known = torch.cat([seen.pop(), blocks(video), torch.ones(*blocks(video).shape[:-1], 1)], dim=-1)
        known = known.flatten(0, -2).double()
        inputs, products, count = inputs + known.T @ known, products + known.T @ wanted, count + len(known)
    handle.remove()
    assert isinstance(inputs, Tensor)
    # Features and pixels are nearly dependent.
    inputs = inputs + 1e-5 * count * torch.eye(len(inputs), dtype=torch.double)
    fitted = torch.linalg.solve(inputs, products)
    synthesis = torch.linalg.eigh(fitted.T @ inputs @ fitted).eigenvectors.flip(1)[:, :rank]
    return (fitted @ synthesis).float(), synthesis.float()


if __name__ == "__main__":
    main()
