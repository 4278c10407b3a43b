"""`vidvq train`: claims the run's directory, and steps until the end, a signal, or what cannot be undone."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor
from torch.profiler import record_function

from vidvq import config as settings
from vidvq.data import ClipBatches, clip_batches
from vidvq.errors import JobStopped, UsageError, WorkerLost
from vidvq.formats.checkpoint import Fingerprints, is_checkpoint, step_folder
from vidvq.log import info, progress, warn
from vidvq.model.pixels import to_video
from vidvq.storage import differences, write_atomic
from vidvq.train.config import TrainConfig
from vidvq.train.evaluation import Evaluator
from vidvq.train.guard import RollbackNeeded
from vidvq.train.pace import Pace, forward_flops
from vidvq.train.profile import DATA, Profiler
from vidvq.train.resume import StopSignal
from vidvq.train.sinks import Sinks
from vidvq.train.trainer import Trainer
from vidvq.train.world import World, any_rank, join_world, leave_world, summed, what_was_lost

_LOW_USAGE = 0.5
_SURE = 0.98
# What may change when a run goes on: how it is computed, and not what is learned.
_MAY_CHANGE = {
    "zero_stage",
    "checkpoint_activations",
    "lost_after_s",
    "keep_checkpoints",
    "data.workers",
    "data.threads",
    "data.cache_mib",
}


def run_train(config: TrainConfig, profile: bool = False) -> Fingerprints | None:
    """Train a tokenizer; on rank 0 returns the fingerprints of the last checkpoint.

    Args:
        config: what to train.
        profile: write a trace of a few steps into the run's directory.

    Raises:
        ValueError: the run's directory holds a run of another config, or the data is not usable.
        OSError: the disk is full or not writable; the checkpoints that are there stay.
        ConnectionError: another process of the job is gone.
        InterruptedError: SIGTERM came; the last step is saved.
    """
    run = Path(config.out)
    world = join_world(config.lost_after_s)
    try:
        data = ClipBatches(config.data, config.seed, world.rank, world.size)
        _claim(run, config)
        if is_checkpoint(step_folder(run, config.steps)):
            info(f"{run} is trained already: {step_folder(run, config.steps)} is there")
            return None
        return _Loop(config, run, world, data, profile).fit()
    except RuntimeError as error:
        if lost := what_was_lost(error):
            message = f"process {world.rank} of {world.size} has lost another one: {lost}"
            raise WorkerLost(f"{message}; start the job again to go on from its last checkpoint") from error
        raise
    finally:
        leave_world()


def _claim(run: Path, config: TrainConfig) -> None:
    """Write the resolved config, or refuse a directory that holds another."""
    path, mine = run / "config.yaml", settings.to_dict(config)
    if path.exists():
        theirs = settings.read_yaml(path)
        found = differences("", theirs, mine)
        differing = [line for line in found if line.partition(" ")[0] not in _MAY_CHANGE]
        if differing:
            raise UsageError(f"{run} holds a run of another config: {'; '.join(differing)}. Give another out=")
    write_atomic(path, settings.dump(config).encode())


class _Loop:
    def __init__(self, config: TrainConfig, run: Path, world: World, data: ClipBatches, profile: bool) -> None:
        self.config, self.run, self.world, self.data = config, run, world, data
        self.trainer = Trainer(config, run, world)
        self.evaluator = Evaluator(config, world, self.trainer.perceptual)
        self.profiler = Profiler(run) if profile and world.rank == 0 else None
        self.pace = Pace(world.device, config.precision)
        self.sums: dict[str, Tensor] = {}
        self.alarms: set[str] = set()
        self.sinks = self._open_sinks()
        self.batches: Iterator[Tensor] | None = None

    def fit(self) -> Fingerprints | None:
        config, position, prints = self.config, self.trainer.position, None
        stopping = StopSignal()
        with progress("train", config.steps, "steps") if self.world.rank == 0 else nullcontext() as bar:
            if bar:
                bar.advance(position.step)
            while self.trainer.position.step < config.steps:
                try:
                    self._step()
                except RollbackNeeded as problem:
                    lost = self._roll_back(str(problem))
                    if bar:
                        bar.advance(-lost)
                    continue
                done = self.trainer.position.step
                note = self._log(done) if done % config.log_every == 0 or done == config.steps else None
                if bar:
                    bar.advance(note=note)
                if config.evaluation.clips and (done % config.evaluation.every == 0 or done == config.steps):
                    self._evaluate(done)
                stop = any_rank(stopping.asked, self.world)
                if done % config.checkpoint_every == 0 or done == config.steps or stop:
                    prints = self.trainer.save()
                if stop and done < config.steps:
                    raise JobStopped(f"asked to stop; step {done} is saved, start again to go on")
        if self.sinks:
            self.sinks.close()
        if self.profiler:
            self.profiler.close()
        return prints

    def _step(self) -> None:
        """One step of both players, over as many passes as make the batch."""
        for turn in range(self.config.data.accumulation(self.world.size)):
            terms = self._learn_from_good_pass(turn)
            for name, value in terms.items():
                self.sums[name] = self.sums.get(name, 0) + value.float()
        self.trainer.finish_step()
        self.pace.steps += 1
        if self.profiler:
            self.profiler.step()

    def _learn_from_good_pass(self, turn: int) -> dict[str, Tensor]:
        while True:
            terms = self.trainer.learn(self._next(turn), turn)
            if not isinstance(terms, str):
                return terms
            position = self.trainer.position
            if self.world.rank == 0:
                warn(f"step {position.step + 1}: batch {position.batch} is skipped: {terms}")
            position.batch += 1
            self.batches = None

    def _next(self, turn: int) -> Tensor:
        asked = monotonic()
        if self.batches is None:
            self.batches = clip_batches(self.data, self.trainer.position.batch, turn)
        with record_function(DATA):
            video = to_video(next(self.batches)).to(self.world.device, non_blocking=True)
        self.pace.waited_s += monotonic() - asked
        generator, critic = forward_flops(self.config, tuple(video.shape))
        playing = self.config.adversarial and self.trainer.position.step >= self.config.loss.adversarial_start
        self.pace.flops += 3 * generator + (8 * critic if playing else 0)
        self.pace.clip_frames += video.shape[0] * video.shape[2] * self.world.size
        return video

    def _roll_back(self, problem: str) -> int:
        """Go back to the last checkpoint, and on with the data after the bad batch; returns the steps lost."""
        position = self.trainer.position
        if position.rollbacks >= self.config.guard.rollbacks:
            raise JobStopped(
                f"step {position.step + 1}: {problem}, after {position.rollbacks} rollbacks; lower the learning rates, "
                "raise loss.lecam, or use precision=fp32"
            )
        bad, at, rollbacks = position.batch, position.step, position.rollbacks
        self.trainer = Trainer(self.config, self.run, self.world)
        position = self.trainer.position
        position.batch, position.rollbacks = bad + 1, rollbacks + 1
        if self.world.rank == 0:
            warn(f"step {at + 1}: {problem}; back to step {position.step}, on with batch {position.batch}")
        if self.sinks:
            self.sinks.close()
            self.sinks = self._open_sinks()
        self.batches, self.sums = None, {}
        self.pace.start_again()
        return at - position.step

    def _log(self, step: int) -> str | None:
        """Tell of the steps since the last time; sums are over ranks and passes."""
        names = sorted(self.sums)
        values = summed(torch.stack([self.sums[name] for name in names]), self.world)
        passes = self.pace.steps * self.config.data.accumulation(self.world.size) * self.world.size
        metrics = dict(zip(names, (values / passes).tolist(), strict=True))
        metrics["psnr"] = float(10 * torch.log10(4 / torch.tensor(max(metrics["l2"], 1e-12))))
        metrics |= self.trainer.rates() | self.pace.measure() | self.trainer.usage.measure()
        self.sums = {}
        self.pace.start_again()
        if not self.sinks:
            return None
        alarms = self._alarms(metrics, step)
        for name in alarms.keys() - self.alarms:
            warn(f"step {step}: {alarms[name]}")
        self.alarms = set(alarms)
        self.sinks.scalars(step, metrics)
        return f"loss {metrics['loss']:.4f} psnr {metrics['psnr']:.2f} dB"

    def _alarms(self, metrics: dict[str, float], step: int) -> dict[str, str]:
        """What is wrong now, by name; told when it begins."""
        alarms = self.trainer.usage.alarms(metrics, _LOW_USAGE, step)
        if metrics.get("accuracy", 0.0) > _SURE:
            alarms["balance"] = (
                "the discriminator tells nearly every patch apart; lower its learning rate or raise loss.lecam"
            )
        return alarms

    def _evaluate(self, done: int) -> None:
        scores, shown = self.evaluator.score(self.trainer.average.state_dict())
        best = self.trainer.note_score(self.evaluator.goodness(scores))
        self.pace.start_again()
        if self.sinks:
            self.sinks.scalars(done, {f"held_out_{name}": value for name, value in scores.items()})
            self.sinks.pairs(done, shown)
            info(f"held out at step {done}: {self.evaluator.line(scores)}{', the best so far' if best else ''}")

    def _open_sinks(self) -> Sinks | None:
        return Sinks(self.run, self.trainer.position.step) if self.world.rank == 0 else None
