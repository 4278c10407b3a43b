"""Give the decoder of a trained tokenizer a lookahead, fitted on latents alone; one that it has is fitted further.

    python benchmarks/lookahead.py CHECKPOINT --clips CLIPS [--clips MORE] --config CONFIG --out OUT

The lookahead maps quantized latents to what the encoder gave; the loss is the mean over clips of the logarithm of their
mean squared error, so that still and moving clips count alike. Tokens stay valid. The checkpoint is a start for
`vidvq train ... train_only=decoder start_from=OUT`; until then the decoder knows noisier latents only.
"""

from collections.abc import Sequence
from math import cos, pi
from pathlib import Path

import click
import torch
from linear_path import read_videos
from start import DecoderPart
from torch import Tensor

from vidvq.model import VideoTokenizer
from vidvq.model.layers import TemporalCache
from vidvq.model.refine import Lookahead

STEPS, CLIPS, LR, SEED = 1500, 4, 2e-3, 0
REPORTED = 250


def fit_lookahead(old: VideoTokenizer, new: VideoTokenizer, clips: Sequence[Path], every: int) -> None:
    """Fit the lookahead of a new tokenizer to the latents of an old one."""
    lookahead = new.decoder.lookahead
    assert lookahead is not None
    fit(lookahead, [pair for folder in clips for pair in latents(old, folder, every)])


@torch.inference_mode()
def latents(tokenizer: VideoTokenizer, clips: Path, every: int) -> list[tuple[Tensor, Tensor]]:
    """Return quantized and continuous latents ``g h w d`` of clips."""
    pairs = []
    for video in read_videos(tokenizer, clips, every):
        continuous = tokenizer.encoder(video, TemporalCache())
        codes, _ = tokenizer.quantizer.encode(continuous, first=True)
        quantized, _ = tokenizer.quantizer.lookup(codes, first=True)
        pairs.append((quantized[0].permute(1, 2, 3, 0), continuous[0].permute(1, 2, 3, 0)))
    return pairs


def fit(lookahead: Lookahead, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Train a lookahead on pairs of quantized and continuous latents ``g h w d``."""
    optimizer = torch.optim.AdamW(lookahead.parameters(), LR)
    generator = torch.Generator().manual_seed(SEED)
    total = torch.zeros(2)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 + cos(pi * step / STEPS)) / 2
        losses = []
        for index in torch.randint(len(pairs), (CLIPS,), generator=generator).tolist():
            quantized, continuous = pairs[index]
            line = torch.cat([quantized, *[quantized[-1:]] * lookahead.groups])
            errors = (lookahead(line[None])[0] - continuous).square().mean()
            losses.append(errors.log())
            total += torch.stack([errors.detach(), (quantized - continuous).square().mean()]).log()
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        if (step + 1) % REPORTED == 0:
            after, before = (10 / torch.tensor(10.0).log() * total / (REPORTED * CLIPS)).tolist()
            click.echo(f"step {step + 1}: latents are {before - after:.2f} dB closer")
            total.zero_()


LOOKAHEAD = DecoderPart("decoder.lookahead.", fit_lookahead)
main = LOOKAHEAD.command("Write a checkpoint with a fitted lookahead; other parts of the config are new.")

if __name__ == "__main__":
    main()
