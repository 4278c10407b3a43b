"""The two players and everything of them that is saved: networks, engines, averages, and where the run is."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from vidvq.formats.checkpoint import Fingerprints, step_folder, write_checkpoint
from vidvq.log import info
from vidvq.model import Discriminator, VideoTokenizer
from vidvq.model.pixels import PREPROCESSING
from vidvq.train.config import OptimizerConfig, TrainConfig
from vidvq.train.ema import WeightAverage
from vidvq.train.engine import (
    half_precision,
    load_optimizer_state,
    make_engine,
    optimizer_state,
    set_lr,
    whole_state,
)
from vidvq.train.guard import Buffers, Guard, RollbackNeeded
from vidvq.train.memory import checkpoint_activations
from vidvq.train.objective import Objective
from vidvq.train.profile import AVERAGE, BACKWARD, CRITIC, FORWARD, LOSSES
from vidvq.train.resume import Position, Saved, find_training, prune, read_training, seed_step, sweep, write_training
from vidvq.train.schedule import learning_rate
from vidvq.train.start import fill, make_perceptual, start_from
from vidvq.train.usage import CodeUsage
from vidvq.train.world import World, summed, wait_for_all

_IN_RANGE = 1.001


class Trainer:
    """Steps both players. Made from the newest whole checkpoint of the run, or afresh.

    Raises:
        ValueError: ``start_from`` does not fit, or the weights of the perceptual loss are not there.
    """

    def __init__(self, config: TrainConfig, run: Path, world: World) -> None:
        self.config, self.run, self.world = config, run, world
        torch.manual_seed(config.seed)
        tokenizer, discriminator = VideoTokenizer(config.model), Discriminator(config.discriminator)
        if world.rank == 0:
            sweep(run)
        folder = self._agree_on(find_training(run) if world.rank == 0 else None)
        saved = read_training(folder) if folder else None
        self.position = saved.position if saved else Position()
        self._stored = start_from(tokenizer, config, folder.parent if folder else None)
        if folder and saved:
            fill("tokenizer", tokenizer, saved, folder)
            if config.adversarial:
                fill("discriminator", discriminator, saved, folder)
        if config.train_only == "decoder":
            tokenizer.encoder.requires_grad_(False).eval()
            tokenizer.quantizer.requires_grad_(False).eval()
        if config.checkpoint_activations:
            checkpoint_activations(tokenizer)
        self.tokenizer, self.discriminator = tokenizer.to(world.device), discriminator.to(world.device)
        self.generator = make_engine(self.tokenizer, config.generator, config, world)
        self.critic = (
            make_engine(self.discriminator, config.discriminator_optimizer, config, world)
            if config.adversarial
            else None
        )
        self.average = WeightAverage(self.tokenizer, config.ema_decay)
        self.usage = CodeUsage(self.tokenizer, config.usage_every, world)
        self.perceptual = make_perceptual(config, world)
        factors = (self.tokenizer.temporal_factor, self.tokenizer.spatial_factor, self.tokenizer.spatial_factor)
        self.objective = Objective(config, factors, self.perceptual)
        self.guard, self._buffers = Guard(config.guard), Buffers(self.tokenizer)
        if saved:
            self._load(saved)
            if world.rank == 0:
                info(f"going on from {folder.parent if folder else run}")

    def learn(self, video: Tensor, turn: int) -> dict[str, Tensor] | str:
        """Take one pass of the present step into both players' gradients, and step them where it is the step's last.

        Args:
            video: ``b c t h w`` in [-1, 1], this rank's share.
            turn: which pass of the step.

        Returns:
            the terms of both losses; or what is wrong with the batch, of which then nothing stays.

        Raises:
            RollbackNeeded: the state is bad.
        """
        step = self.position.step
        self._set_rates(step)
        seed_step(self.config.seed, step, self.position.batch, turn * self.world.size + self.world.rank)
        # The model refuses such input; here it is one more bad batch, on all ranks at once.
        if not float(self._mean(video.abs().amax())) <= _IN_RANGE:
            return self.guard.judge(math.nan) or ""
        self._buffers.keep()
        with record_function(FORWARD):
            out = self.generator(self.objective.show(video))
        with record_function(LOSSES):
            terms = self.objective.generator(step, video, out, self._judge_frozen)
        problem = self.guard.judge(float(self._mean(terms.guarded)))
        if problem:
            self._buffers.restore()
            return problem
        with record_function(BACKWARD):
            self.generator.backward(terms.total)
            self.generator.step()
        self.usage.add(out.codes[: len(video)].detach())
        told = terms.terms
        if self.critic and step >= self.config.discriminator_start:
            with record_function(CRITIC):
                told = told | self._learn_to_tell(step, video, out.reconstruction[: len(video)].detach().float())
        return told

    def finish_step(self) -> None:
        """Count a step whose passes are all taken in."""
        with record_function(AVERAGE):
            self.average.update()
        self.position.step += 1
        self.position.batch += 1
        self.usage.turn(self.position.step)

    def rates(self) -> dict[str, float]:
        """What the last step went by: learning rate, gradient norms."""
        norms = {"grad_norm": self.generator.get_global_grad_norm()}
        if self.critic and self.position.step > self.config.discriminator_start:
            norms["grad_norm_discriminator"] = self.critic.get_global_grad_norm()
        lr = _lr_at(self.config.generator, self.position.step - 1, self.config.steps)
        return {"lr": lr} | {name: float(norm) for name, norm in norms.items() if norm is not None}

    def note_score(self, goodness: float) -> bool:
        """Whether a score is the best so far; the checkpoint of its step is then kept."""
        best = self.position.best is None or goodness > self.position.best[0]
        if best:
            self.position.best = (goodness, self.position.step)
        return best

    def save(self) -> Fingerprints | None:
        """Write a checkpoint of the present step; every rank calls it. Rank 0 returns its fingerprints.

        Raises:
            OSError: the disk is full; the checkpoints that are there stay.
        """
        position = self.position
        position.average_updates = self.average.updates
        position.lecam = (self.objective.lecam.real, self.objective.lecam.fake)
        position.losses = list(self.guard.losses)
        average = self.average.state_dict()
        tensors = {
            "tokenizer": whole_state(self.tokenizer),
            "average": average,
            "generator": optimizer_state(self.generator),
            "usage": self.usage.state_dict(),
        }
        if self.critic:
            tensors |= {"discriminator": whole_state(self.discriminator), "critic": optimizer_state(self.critic)}
        prints = self._write(Saved(position, tensors), average) if self.world.rank == 0 else None
        wait_for_all(self.world)
        return prints

    def _write(self, saved: Saved, average: dict[str, Tensor]) -> Fingerprints:
        step = saved.position.step
        folder = step_folder(self.run, step)
        arrays = {name: self._as_stored(name, tensor) for name, tensor in average.items()}
        try:
            training = write_training(self.run, saved)
            prints = write_checkpoint(folder, self.config.model.to_dict(), PREPROCESSING, arrays, step, training)
        except OSError:
            sweep(self.run)
            raise
        info(f"saved {folder} (token {prints.token[:12]}, decoder {prints.decoder[:12]})")
        best = saved.position.best
        prune(self.run, self.config.keep_checkpoints, best[1] if best else None)
        return prints

    def _as_stored(self, name: str, tensor: Tensor) -> np.ndarray:
        """A tensor as it is written: what is not trained keeps its type, and so its fingerprint."""
        array = tensor.detach().float().cpu().contiguous().numpy()
        return array.astype(self._stored[name]) if name in self._stored else array

    def _load(self, saved: Saved) -> None:
        load_optimizer_state(self.generator, saved.tensors["generator"])
        if self.critic:
            load_optimizer_state(self.critic, saved.tensors["critic"])
        self.average.load_state_dict(saved.tensors["average"], saved.position.average_updates)
        self.usage.load_state_dict(saved.tensors["usage"])
        self.guard.losses.extend(saved.position.losses)
        self.objective.lecam.real, self.objective.lecam.fake = saved.position.lecam

    def _learn_to_tell(self, step: int, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        assert self.critic is not None
        loss, terms = self.objective.discriminator(step, real, fake, self.critic)
        mean, on_real, on_fake = self._mean(
            torch.stack([loss.detach(), terms["logits_real"], terms["logits_fake"]])
        ).tolist()
        if not math.isfinite(mean):
            raise RollbackNeeded(f"the discriminator's loss is {mean}")
        self.objective.lecam.update(on_real, on_fake)
        self.critic.backward(loss)
        self.critic.step()
        return terms

    def _judge_frozen(self, video: Tensor) -> Tensor:
        """The discriminator in the generator's step: its bare module with frozen weights.

        Through its engine DeepSpeed would take the generator's backward for its own.
        """
        half = half_precision(self.config)
        self.discriminator.requires_grad_(False)
        with torch.autocast(self.world.device.type, dtype=half, enabled=half is not None):
            logits = self.discriminator(video)
        self.discriminator.requires_grad_(True)
        return logits.float()

    def _set_rates(self, step: int) -> None:
        config = self.config
        set_lr(self.generator, _lr_at(config.generator, step, config.steps))
        if self.critic:
            start = config.discriminator_start
            set_lr(self.critic, _lr_at(config.discriminator_optimizer, max(step - start, 0), config.steps - start))

    def _mean(self, tensor: Tensor) -> Tensor:
        return summed(tensor.detach().float().clone(), self.world) / self.world.size

    def _agree_on(self, found: Path | None) -> Path | None:
        """The training state that rank 0 found, on every rank."""
        step = int(found.parent.name.rpartition("-")[2]) if found else 0
        step = int(summed(torch.tensor(float(step), device=self.world.device), self.world))
        return step_folder(self.run, step) / "training" if step else None


def _lr_at(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    return learning_rate(step, steps, optimizer.lr, optimizer.final_lr, optimizer.warmup_steps)
