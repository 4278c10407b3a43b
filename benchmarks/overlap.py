"""Give the decoder of a trained tokenizer overlapping blocks, fitted by least squares.

    python benchmarks/overlap.py CHECKPOINT --clips CLIPS [--clips MORE] --config CONFIG --out OUT

The linear map from the latents around a block to the pixels of the block is the ridge regression of what the decoder
misses. Tokens stay valid. The checkpoint is a start for `vidvq train ... train_only=decoder start_from=OUT`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from linear_path import read_videos
from start import command, with_parts
from torch import Tensor
from torch.nn import functional as F

from vidvq.formats.checkpoint import read_checkpoint, write_checkpoint
from vidvq.model import VideoTokenizer
from vidvq.model.layers import TemporalCache
from vidvq.pretrained import load_pretrained
from vidvq.train.config import TrainConfig

# Weight of the penalty, relative to the mean second moment of the latents.
RIDGE = 1e-3


def add_overlap(checkpoint: Path, clips: Sequence[Path], config: TrainConfig, out: Path, every: int) -> None:
    """Write a checkpoint of ``config.model`` with the weights of another and a fitted overlap.

    Args:
        checkpoint: trained checkpoint.
        clips: directories of clip shards to fit on.
        config: config of the training that follows.
        out: folder of the new checkpoint.
        every: fit on each clip whose number is a multiple of this.
    """
    old = load_pretrained(checkpoint)
    assert isinstance(old, VideoTokenizer)
    stored = read_checkpoint(checkpoint)
    weight, bias = fit(old, clips, every)
    new = with_parts(stored, config).inference_state_dict()
    fitted = {name: tensor.numpy() for name, tensor in new.items()} | dict(stored.tensors)
    fitted |= {"decoder.overlap.weight": weight.numpy(), "decoder.overlap.bias": bias.numpy()}
    write_checkpoint(out, config.model.to_dict(), stored.config["preprocessing"], fitted, 0)


@torch.inference_mode()
def fit(tokenizer: VideoTokenizer, clips: Sequence[Path], every: int) -> tuple[Tensor, Tensor]:
    """Regress what the decoder misses on the latents around each block.

    Returns:
        Weights ``pixels d 3 3`` and biases ``pixels`` of a convolution.
    """
    decoder = tokenizer.decoder
    inputs = products = torch.zeros(())
    for video in (video for folder in clips for video in read_videos(tokenizer, folder, every)):
        codes, _ = tokenizer.quantizer.encode(tokenizer.encoder(video, TemporalCache()), first=True)
        held = decoder.extend(tokenizer.quantizer.lookup(codes, first=True)[0])
        missed = decoder.blocks(video - decoder(held, TemporalCache())).flatten(0, -2).double()
        z = rearrange(held, "b d g h w -> b g h w d")
        latents = decoder.lookahead(z) if decoder.lookahead is not None else z
        around = F.unfold(rearrange(latents, "b g h w d -> (b g) d h w"), 3, padding=1)
        known = F.pad(rearrange(around, "n k p -> (n p) k").double(), (0, 1), value=1.0)
        inputs, products = inputs + known.T @ known, products + known.T @ missed
    ridge = RIDGE * inputs.diagonal().mean() * torch.eye(len(inputs), dtype=torch.double)
    fitted = torch.linalg.solve(inputs + ridge, products).float()
    return rearrange(fitted[:-1], "(d y x) p -> p d y x", y=3, x=3).contiguous(), fitted[-1].contiguous()


main = command(add_overlap, "Write a checkpoint whose decoder has overlapping blocks.")

if __name__ == "__main__":
    main()
