"""Overhead of a training step over its forward and backward passes, and time spent waiting for data.

    python benchmarks/train.py CLIPS [--config demo] [--rounds 5] [--steps 20] [KEY=VALUE]...

Each round runs ``steps`` bare forward and backward passes of the generator and the discriminator on one batch (without
engine, optimizer, weight average, guard, metrics and data loading), then the same number of trainer steps on real
clips. The table shows medians over rounds. The discriminator trains from the first step.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

import torch
from torch import Tensor

from vidvq import config as settings
from vidvq.data import ClipDataset, iter_micro_batches
from vidvq.model.pixels import to_video
from vidvq.train import TrainConfig
from vidvq.train.initialization import make_perceptual
from vidvq.train.throughput import Throughput
from vidvq.train.trainer import Trainer
from vidvq.training.distributed import init_distributed, shutdown_distributed
from vidvq.training.guard import Skipped


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--config", default="demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    overrides = [f"data.clips={options.clips}", *options.overrides]
    config = settings.load(TrainConfig, settings.find_config(options.config), overrides)
    config = replace(config, loss=replace(config.loss, adversarial_start=0, discriminator_warmup=0))
    context = init_distributed(config.lost_after_s)
    trainer = Trainer(config, context, make_perceptual(config, context))
    batches = iter_micro_batches(ClipDataset(config.data, config.seed), 0)
    # Excludes codebook warm-up, clip caching and kernel initialization from the measurement.
    warmup = max(120, options.steps)
    _train(trainer, batches, warmup)
    video = to_video(next(batches)).to(context.device)
    rounds = []
    for _ in range(options.rounds):
        bare = _bare(trainer, video, options.steps)
        rounds.append((bare, *_train(trainer, batches, options.steps)))
    flops = Throughput(config, context).flops(tuple(video.shape), trainer.progress.step)
    shutdown_distributed()
    bare, step, wait = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{options.config}, batch {tuple(video.shape)}, {context.device}, {torch.get_num_threads()} threads")
    print(f"bare forward and backward, both     {bare:.3f} s, {flops / bare / 1e9:.1f} GFLOP/s")
    print(f"trainer step                        {step:.3f} s")
    ratios = statistics.median(step / bare for bare, step, _ in rounds)
    print(f"trainer step / bare passes          {ratios:.2f}")
    print(f"waiting for data                    {wait:.1%} of a step")


def _train(trainer: Trainer, batches: Iterator[Tensor], steps: int) -> tuple[float, float]:
    """Measure the time of a trainer step (seconds) and the fraction spent waiting for data."""
    waited_s, started = 0.0, monotonic()
    for _ in range(steps):
        waiting = monotonic()
        video = to_video(next(batches)).to(trainer.context.device)
        waited_s += monotonic() - waiting
        result = trainer.forward_backward(video, 0)
        assert not isinstance(result, Skipped), result.reason
        trainer.finish_step()
    _synchronize(trainer)
    elapsed_s = monotonic() - started
    return elapsed_s / steps, waited_s / elapsed_s


def _bare(trainer: Trainer, video: Tensor, steps: int) -> float:
    """Measure the time of a bare forward and backward pass of both networks (seconds)."""
    tokenizer, discriminator, objective = trainer.tokenizer, trainer.discriminator, trainer.objective
    kept = {name: buffer.clone() for name, buffer in tokenizer.named_buffers()}
    started = monotonic()
    for _ in range(steps):
        out = tokenizer(video)
        discriminator.requires_grad_(False)
        objective.generator(trainer.progress.step, video, out, discriminator).total.backward()
        discriminator.requires_grad_(True)
        objective.discriminator(trainer.progress.step, video, out.reconstruction.detach(), discriminator)[0].backward()
        tokenizer.zero_grad()
        discriminator.zero_grad()
    _synchronize(trainer)
    elapsed_s = monotonic() - started
    with torch.no_grad():
        for name, buffer in tokenizer.named_buffers():
            buffer.copy_(kept[name])
    return elapsed_s / steps


def _synchronize(trainer: Trainer) -> None:
    if trainer.context.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
