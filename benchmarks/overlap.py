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
from start import DecoderPart
from torch import Tensor
from torch.nn import functional as F

from vidvq.model import VideoTokenizer
from vidvq.model.layers import TemporalCache

# Weight of the penalty, relative to the mean second moment of the latents.
RIDGE = 1e-3


def fit_overlap(old: VideoTokenizer, new: VideoTokenizer, clips: Sequence[Path], every: int) -> None:
    """Set the overlap of a new tokenizer to what the decoder of an old one misses."""
    overlap = new.decoder.overlap
    assert overlap is not None and overlap.bias is not None
    weight, bias = regress(old, clips, every)
    with torch.no_grad():
        overlap.weight.copy_(weight)
        overlap.bias.copy_(bias)


@torch.inference_mode()
def regress(tokenizer: VideoTokenizer, clips: Sequence[Path], every: int) -> tuple[Tensor, Tensor]:
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


OVERLAP = DecoderPart("decoder.overlap.", fit_overlap)
main = OVERLAP.command("Write a checkpoint whose decoder has overlapping blocks.")

if __name__ == "__main__":
    main()
