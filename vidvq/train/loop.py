"""The training loop: acquires the run directory and trains until completion, SIGTERM or an unrecoverable failure."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from vidvq.config import checked
from vidvq.data import ClipDataset, iter_micro_batches
from vidvq.formats.checkpoint import Fingerprints, is_checkpoint, step_folder, write_checkpoint
from vidvq.log import counted, info, progress, warn
from vidvq.model.device_copy import DeviceCopier
from vidvq.model.pixels import PREPROCESSING, to_video
from vidvq.train.config import TrainConfig
from vidvq.train.evaluation import Evaluator
from vidvq.train.initialization import frozen_dtypes, initial_state, make_perceptual, read_initial_checkpoint
from vidvq.train.profiler import DATA, Profiler, phase
from vidvq.train.throughput import Throughput
from vidvq.train.trainer import Trainer
from vidvq.training.checkpoints import latest_state, remove_partial_saves, save_checkpoint
from vidvq.training.distributed import DistributedContext, barrier, training_job, world_size
from vidvq.training.engine import check_weights, deepspeed_groups
from vidvq.training.guard import RollbackNeeded, Skipped
from vidvq.training.machine_memory import machine_memory_file
from vidvq.training.mean_terms import MeanTerms
from vidvq.training.metric_writer import open_writer
from vidvq.training.recovery import roll_back, skip_batch
from vidvq.training.run_directory import locked_run_directory, record_config
from vidvq.training.signals import StopSignal
from vidvq.training.training_state import TrainingState

_LOW_USAGE = 0.5
_HIGH_ACCURACY = 0.98
# Squared range of pixels in [-1, 1].
_PEAK_SQUARED = 4
# Settings that may change on resume: they affect the execution, not the result.
_MAY_CHANGE = {
    "zero_stage",
    "checkpoint_activations",
    "compile",
    "lost_after_s",
    "keep_checkpoints",
    "data.workers",
    "data.threads",
    "data.cache_mib",
}


def run_train(config: TrainConfig, profile: bool = False) -> Fingerprints | None:
    """Train a tokenizer, or resume its training.

    Args:
        config: config of the run.
        profile: write a profile of a few steps to the run directory.

    Returns:
        Fingerprints of the last checkpoint on rank 0; None on other ranks and for a finished run.

    Raises:
        UsageError: the run directory belongs to a run with another config or is in use, or the data is unusable.
        OSError: the disk is full or not writable; existing checkpoints are unaffected.
        WorkerLost: another process of the job is lost.
        JobTerminated: SIGTERM was received; the last step is saved, as it is before a KeyboardInterrupt.
        JobStopped: the limit of rollbacks is reached.
    """
    config = checked(TrainConfig, config)
    run = Path(config.out)
    # Checked before joining the process group: a rank that fails later would make the others report a lost process.
    config.data.micro_batch(world_size())
    with training_job(config.lost_after_s) as context, deepspeed_groups():
        cache_file = machine_memory_file() if config.data.cache_mib else None
        data = ClipDataset(config.data, config.seed, context.rank, context.size, cache_file)
        with locked_run_directory(run, "vidvq train", context):
            remedy = f"use another out=, with start_from={run} to train its weights further"
            record_config(run, config, _MAY_CHANGE, remedy)
            if is_checkpoint(step_folder(run, config.steps)):
                info(f"{run} is already complete: {step_folder(run, config.steps)} exists")
                return None
            return _TrainingLoop(config, run, context, data, profile).fit()


class _TrainingLoop:
    """State and steps of a training run."""

    def __init__(
        self, config: TrainConfig, run: Path, context: DistributedContext, data: ClipDataset, profile: bool
    ) -> None:
        self.config, self.run, self.context, self.data = config, run, context, data
        if context.rank == 0:
            remove_partial_saves(run)
        state = latest_state(run, context)
        weights = read_initial_checkpoint(config, state.checkpoint if state else None)
        self.dtypes = frozen_dtypes(config, weights)
        perceptual = make_perceptual(config, context)
        self.evaluator = Evaluator(config, context, perceptual)
        self.trainer = Trainer(config, context, perceptual)
        self.trainer.load_state(state or initial_state(config, weights))
        if state and context.rank == 0:
            info(f"resuming from {state.checkpoint}")
        self.profiler = Profiler(run) if profile and context.rank == 0 else None
        self.throughput = Throughput(config, context)
        self.terms = MeanTerms()
        self.alarms: set[str] = set()
        self.writer = open_writer(self.run, self.trainer.progress.step, self.context)
        self.batches: Iterator[Tensor] | None = None
        self.device_copier = DeviceCopier(context.device)

    def fit(self) -> Fingerprints | None:
        try:
            with StopSignal() as stop_signal:
                return self._fit(stop_signal)
        finally:
            if self.writer:
                self.writer.close()
            if self.profiler:
                self.profiler.close()

    def _fit(self, stop_signal: StopSignal) -> Fingerprints | None:
        config, prints = self.config, None
        self.trainer.stop_requested = lambda: stop_signal.received
        if self.context.rank == 0:
            info(self._describe())
        with progress("train", config.steps, "steps") if self.context.rank == 0 else nullcontext() as bar:
            if bar:
                bar.advance(self.trainer.progress.step, earlier=True)
                if config.compile:
                    info(
                        "the first step, the first after the codebooks' warm-up and the first with the discriminator "
                        "take longer: they compile"
                    )
            while self.trainer.progress.step < config.steps:
                try:
                    self._train_batch()
                    done = self.trainer.progress.step + 1
                    # A single process need not wait for the ranks to agree, and stops a step earlier.
                    stop = self.trainer.stop_agreed or (self.context.size == 1 and stop_signal.received)
                    saves = done % config.checkpoint_every == 0 or done == config.steps
                    if saves or stop:
                        networks = {"tokenizer": self.trainer.tokenizer, "discriminator": self.trainer.discriminator}
                        check_weights(networks, self.context)
                except RollbackNeeded as problem:
                    lost = self._roll_back(str(problem))
                    if bar:
                        bar.advance(-lost)
                    continue
                self._finish_step()
                note = self._log(done) if done % config.log_every == 0 or done == config.steps else None
                if bar:
                    bar.advance(note=note)
                if config.evaluation.clips and (done % config.evaluation.every == 0 or done == config.steps):
                    self._evaluate(done, saves)
                if saves or stop:
                    prints = self._save()
                if stop and done < config.steps:
                    raise stop_signal.error(done)
        return prints

    def _describe(self) -> str:
        """Describe the run in one line."""
        data, trained = self.config.data, self.trainer.tokenizer.parameters()
        weights = sum(getattr(weight, "ds_numel", weight.numel()) for weight in trained if weight.requires_grad)
        shapes = ", ".join(
            f"{counted(shape.num_frames, 'frames')} of {shape.width}x{shape.height}" for shape in data.shapes
        )
        device, ranks = self.context.device, self.context.size
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return (
            f"{weights / 1e6:.1f} M trainable parameters, {self.config.precision}, on {ranks} x {name}; "
            f"{data.batch_size} of {len(self.data.index.keys)} clips per step, {shapes}"
        )

    def _train_batch(self) -> None:
        """Train on all micro-batches of a batch; the last one updates the weights."""
        for micro_step in range(self.config.data.accumulation(self.context.size)):
            self.terms.add(self._train_micro_batch(micro_step))

    def _finish_step(self) -> None:
        self.trainer.finish_step()
        self.throughput.finish_step()
        if self.profiler:
            self.profiler.step()

    def _train_micro_batch(self, micro_step: int) -> dict[str, Tensor]:
        while True:
            result = self.trainer.forward_backward(self._next_video(micro_step), micro_step)
            if not isinstance(result, Skipped):
                return result
            skip_batch(self.trainer.progress, result, self.context)
            self.batches = None

    def _next_video(self, micro_step: int) -> Tensor:
        """Return the next micro-batch ``b c t h w`` on the device."""
        position, started = self.trainer.progress, monotonic()
        if self.batches is None:
            self.batches = iter_micro_batches(self.data, position.batch, micro_step)
        with phase(DATA):
            batch = next(self.batches)
            waited_s = monotonic() - started
            # Pixels are copied as uint8 and converted on the device.
            video = to_video(self.device_copier(batch))
        self.throughput.record(tuple(video.shape), waited_s, position.step)
        return video

    def _roll_back(self, problem: str) -> int:
        """Load the last checkpoint and continue with the data after the bad batch; returns the number of lost steps.

        Raises:
            JobStopped: the limit of rollbacks is reached.
        """
        lost = roll_back(
            self.trainer,
            self._last_state,
            problem,
            limit=self.config.guard.rollbacks,
            remedy="lower the learning rates, raise loss.lecam, or use precision=fp32",
            context=self.context,
        )
        if self.writer:
            self.writer.close()
            self.writer = open_writer(self.run, self.trainer.progress.step, self.context)
        self.batches = None
        self.terms.reset()
        self.throughput.reset()
        return lost

    def _last_state(self) -> TrainingState:
        state = latest_state(self.run, self.context)
        return state or initial_state(self.config, read_initial_checkpoint(self.config, None))

    def _save(self) -> Fingerprints | None:
        """Write a checkpoint. Collective: call on every rank."""
        state, prints = self.trainer.state_dict(), None
        if self.context.rank == 0:
            prints = save_checkpoint(self.run, state, self.config.keep_checkpoints, self.dtypes, self._write)
        barrier()
        self.throughput.reset()
        return prints

    def _write(self, folder: Path, tensors: dict[str, np.ndarray], training: Path) -> Fingerprints:
        step = self.trainer.progress.step
        prints = write_checkpoint(folder, self.config.model.to_dict(), PREPROCESSING, tensors, step, training)
        info(f"saved {folder} (token {prints.token[:12]}, decoder {prints.decoder[:12]})")
        return prints

    def _log(self, step: int) -> str | None:
        """Write the metrics since the last call; rank 0 returns a note for the progress bar. Collective."""
        metrics = self.terms.compute_and_reset(self.context)
        metrics["psnr"] = float(10 * torch.log10(_PEAK_SQUARED / torch.tensor(max(metrics["l2"], 1e-12))))
        metrics |= self.trainer.optimizer_metrics() | self.throughput.measure() | self.trainer.usage.measure()
        self.throughput.reset()
        if not self.writer:
            return None
        alarms = self._alarms(metrics, step)
        for name in alarms.keys() - self.alarms:
            warn(f"step {step}: {alarms[name]}")
        self.alarms = set(alarms)
        self.writer.scalars(step, metrics)
        return f"loss {metrics['loss']:.4f} psnr {metrics['psnr']:.2f} dB"

    def _alarms(self, metrics: dict[str, float], step: int) -> dict[str, str]:
        """Return the messages of active alarms by name. The caller logs an alarm once, when it becomes active."""
        alarms = self.trainer.usage.alarms(metrics, _LOW_USAGE, step) | self.throughput.alarms(metrics)
        if metrics.get("accuracy", 0.0) > _HIGH_ACCURACY:
            alarms["balance"] = (
                "the discriminator classifies nearly every patch correctly; lower its learning rate or raise loss.lecam"
            )
        return alarms

    def _evaluate(self, step: int, saves: bool) -> None:
        scores, shown = self.evaluator.score(self.trainer.average.state_dict())
        # Only weights that are saved can be the best, because the best checkpoint is kept.
        best = saves and self.trainer.progress.record_score(self.evaluator.selection_score(scores))
        self.throughput.reset()
        if self.writer:
            self.writer.scalars(step, {f"held_out_{name}": value for name, value in scores.items()})
            self.writer.comparisons(step, shown)
            note = ", best checkpoint so far" if best else ""
            info(f"held out at step {step}: {self.evaluator.summary(scores)}{note}")
