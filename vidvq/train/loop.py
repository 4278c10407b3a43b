"""The training loop: a generator step, then a discriminator step, each through its own DeepSpeed engine."""

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from vidvq import config as settings
from vidvq.data import clip_batches, list_shards
from vidvq.formats.checkpoint import TRAINING, Fingerprints, is_checkpoint, list_steps, step_folder
from vidvq.log import info, progress, warn
from vidvq.model import Discriminator, VideoTokenizer
from vidvq.model.checkpoint import save_tokenizer
from vidvq.model.pixels import to_video
from vidvq.storage import differences, write_atomic
from vidvq.train.config import TrainConfig
from vidvq.train.ema import WeightAverage
from vidvq.train.engine import World, any_rank, join_world, leave_world, make_engine
from vidvq.train.losses import LeCam, code_usage, hinge_discriminator, hinge_generator
from vidvq.train.resume import RankState, StopSignal, load_training, save_training


def run_train(config: TrainConfig) -> Fingerprints | None:
    """Train a tokenizer; on rank 0 returns the fingerprints of the last checkpoint.

    Raises:
        ValueError: the run's directory holds a run of another config, or the data is not usable.
        OSError: the disk is full or not writable; the checkpoints that are there stay.
    """
    run = Path(config.out)
    list_shards(config.data)
    _claim(run, config)
    if is_checkpoint(step_folder(run, config.steps)):
        info(f"{run} is trained already: {step_folder(run, config.steps)} is there")
        return None
    world = join_world()
    try:
        return _Trainer(config, run, world).fit()
    finally:
        leave_world()


def _claim(run: Path, config: TrainConfig) -> None:
    """Write the resolved config, or refuse a directory that holds another."""
    path, mine = run / "config.yaml", settings.to_dict(config)
    if path.exists():
        theirs = settings.read_yaml(path)
        differing = list(differences("", theirs, mine))
        if differing:
            raise ValueError(f"{run} holds a run of another config: {'; '.join(differing)}. Give another out=")
    write_atomic(path, settings.dump(config).encode())


@dataclass
class _Window:
    """What is averaged and counted between two lines of metrics."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    codes: dict[str, list[Tensor]] = field(default_factory=dict)
    started: float = field(default_factory=monotonic)
    waited_s: float = 0.0

    def add(self, terms: dict[str, float]) -> None:
        self.steps += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class _Trainer:
    def __init__(self, config: TrainConfig, run: Path, world: World) -> None:
        torch.manual_seed(config.seed)
        self.config, self.run, self.world = config, run, world
        tokenizer = VideoTokenizer(config.model).to(world.device)
        discriminator = Discriminator(config.discriminator).to(world.device)
        loss = config.loss
        self.adversarial = loss.adversarial > 0 and loss.adversarial_start < config.steps
        self.discriminator_start = max(loss.adversarial_start - loss.discriminator_warmup, 0)
        self.generator = make_engine(tokenizer, config.generator, config.steps, config, world)
        if self.adversarial:
            steps = config.steps - self.discriminator_start
            self.critic = make_engine(discriminator, config.discriminator_optimizer, steps, config, world)
        self.tokenizer, self.discriminator = tokenizer, discriminator
        self.average = WeightAverage(tokenizer, config.ema_decay)
        self.lecam = LeCam()
        self.first = self._resume()
        self.sinks = _Sinks(run, self.first) if world.rank == 0 else None

    def fit(self) -> Fingerprints | None:
        config, prints = self.config, None
        batches = clip_batches(config.data, config.seed, self.world.rank, self.world.size, start=self.first)
        window, stopping = _Window(), StopSignal()
        with progress("train", config.steps, "steps") if self.world.rank == 0 else nullcontext() as bar:
            if bar:
                bar.advance(self.first)
            for step in range(self.first, config.steps):
                asked = monotonic()
                video = to_video(next(batches)).to(self.world.device)
                window.waited_s += monotonic() - asked
                window.add(self._step(step, video, window))
                done = step + 1
                note = None
                if done % config.log_every == 0 or done == config.steps:
                    note = self._log(done, window)
                    window = _Window()
                if bar:
                    bar.advance(note=note)
                stop = any_rank(stopping.asked, self.world)
                if done % config.checkpoint_every == 0 or done == config.steps or stop:
                    prints = self._save(done)
                if stop and done < config.steps:
                    raise InterruptedError(f"asked to stop; step {done} is saved, start again to go on")
        if self.sinks:
            self.sinks.close()
        return prints

    def _step(self, step: int, video: Tensor, window: _Window) -> dict[str, float]:
        weights = self.config.loss
        out = self.generator(video)
        terms = {"l1": F.l1_loss(out.reconstruction, video), "l2": F.mse_loss(out.reconstruction, video)}
        loss = weights.l1 * terms["l1"] + weights.l2 * terms["l2"] + weights.commitment * out.commitment_loss
        terms["commitment"] = out.commitment_loss
        if self.adversarial and step >= weights.adversarial_start:
            # The bare module with frozen weights: through its engine DeepSpeed would take this backward for its own.
            self.discriminator.requires_grad_(False)
            terms["adversarial"] = hinge_generator(self.discriminator(out.reconstruction))
            self.discriminator.requires_grad_(True)
            loss = loss + weights.adversarial * terms["adversarial"]
        self.generator.backward(loss)
        self.generator.step()
        self.average.update(self.tokenizer)
        for name, codes in split_codes(out.codes, self.tokenizer):
            window.codes.setdefault(name, []).append(codes.detach())
        if self.adversarial and step >= self.discriminator_start:
            terms |= self._discriminator_step(video, out.reconstruction.detach())
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {float(loss)} at step {step}; lower the learning rate, or use precision=fp32"
            )
        return {name: float(value.detach()) for name, value in terms.items()} | {"loss": float(loss.detach())}

    def _discriminator_step(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        logits = self.critic(torch.cat([real, fake]))
        on_real, on_fake = logits.chunk(2)
        loss = hinge_discriminator(on_real, on_fake)
        penalty = self.lecam(on_real, on_fake)
        self.critic.backward(loss + self.config.loss.lecam * penalty)
        self.critic.step()
        return {"discriminator": loss, "logits_real": on_real.mean(), "logits_fake": on_fake.mean()}

    def _log(self, step: int, window: _Window) -> str | None:
        metrics: dict[str, float] = {name: total / window.steps for name, total in window.sums.items()}
        elapsed_s = monotonic() - window.started
        metrics["psnr"] = float(10 * torch.log10(4 / torch.tensor(max(metrics["l2"], 1e-12))))
        metrics["lr"] = self.generator.get_lr()[0]
        metrics["step_s"] = elapsed_s / window.steps
        metrics["data_wait"] = window.waited_s / elapsed_s
        for book in self.tokenizer.codebooks:
            codes = torch.cat([part.flatten() for part in window.codes.get(book.name, [])] or [torch.zeros(0).long()])
            usage, perplexity = code_usage(codes, book.size)
            metrics[f"usage_{book.name}"], metrics[f"perplexity_{book.name}"] = usage, perplexity
        if not self.sinks:
            return None
        self.sinks.write(step, metrics)
        return f"loss {metrics['loss']:.4f} psnr {metrics['psnr']:.2f} dB"

    def _engines(self) -> dict[str, Any]:
        return {"generator": self.generator} | ({"discriminator": self.critic} if self.adversarial else {})

    def _save(self, step: int) -> Fingerprints | None:
        attempt = self.run / "checkpoints" / f".training-{step:08d}"
        save_training(attempt, self._engines(), RankState(step, self.average, self.lecam), self.world)
        if self.world.rank != 0:
            return None
        folder = step_folder(self.run, step)
        prints = save_tokenizer(folder, self.tokenizer, self.average.state_dict(), step, attempt)
        info(f"saved {folder} (token {prints.token[:12]}, decoder {prints.decoder[:12]})")
        for old in list_steps(self.run)[: -self.config.keep_checkpoints]:
            shutil.rmtree(old)
        return prints

    def _resume(self) -> int:
        """Go on from the newest checkpoint that is whole; returns the step to do first."""
        for folder in reversed(list_steps(self.run)):
            state = RankState(0, self.average, self.lecam)
            if not load_training(folder / TRAINING, self._engines(), state, self.world):
                warn(f"{folder} has no whole training state; going back to the checkpoint before it")
                continue
            if self.world.rank == 0:
                info(f"going on from {folder}")
            return state.step
        return 0


class _Sinks:
    """TensorBoard events and ``metrics.jsonl``; a line per window of steps."""

    def __init__(self, run: Path, first: int) -> None:
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first + 1)
        path = run / "metrics.jsonl"
        # What a killed run told of steps after its last checkpoint will be told again.
        kept = [line for line in _read_lines(path) if json.loads(line)["step"] <= first]
        write_atomic(path, "".join(kept).encode())
        self._lines = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        self._lines.write(json.dumps({"step": step} | metrics) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._lines.close()
        self._board.close()


def _read_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def split_codes(codes: Tensor, tokenizer: VideoTokenizer) -> Iterator[tuple[str, Tensor]]:
    """Codes ``b lt lh lw`` by the codebook that they belong to."""
    books = tokenizer.codebooks
    if len(books) == 1:
        yield books[0].name, codes
        return
    yield books[0].name, codes[:, :1]
    yield books[1].name, codes[:, 1:]
