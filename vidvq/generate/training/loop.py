"""The training loop of a generator: acquires the run directory and trains until completion or SIGTERM."""

from collections.abc import Iterator
from contextlib import nullcontext
from math import log
from pathlib import Path
from time import monotonic

import numpy as np

from vidvq.config import checked
from vidvq.data import TokenDataset, iter_micro_batches
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import is_checkpoint, resolve_checkpoint, step_folder
from vidvq.formats.generator import GeneratorCard, write_generator
from vidvq.generate.config import GenerateTrainConfig
from vidvq.generate.network.code_vectors import code_vectors
from vidvq.generate.training.examples import ExampleDataset, Examples
from vidvq.generate.training.held_out import HeldOutLoss
from vidvq.generate.training.trainer import GeneratorTrainer
from vidvq.generate.training.training_data import load_matching_tokenizer, open_training_data
from vidvq.log import info, progress
from vidvq.storage import is_remote, resolve_path
from vidvq.training.checkpoints import latest_state, remove_partial_saves, save_checkpoint
from vidvq.training.distributed import (
    DistributedContext,
    any_rank,
    barrier,
    training_job,
    world_size,
)
from vidvq.training.engine import check_weights, deepspeed_groups
from vidvq.training.guard import RollbackNeeded, Skipped
from vidvq.training.mean_terms import MeanTerms
from vidvq.training.metric_writer import open_writer
from vidvq.training.recovery import roll_back, skip_batch
from vidvq.training.run_directory import locked_run_directory, record_config
from vidvq.training.signals import StopSignal
from vidvq.training.training_state import TrainingState

# Settings that may change on resume: they affect the execution, not the result.
_MAY_CHANGE = {"zero_stage", "lost_after_s", "keep_checkpoints", "data.workers"}


def run_generate_train(config: GenerateTrainConfig) -> None:
    """Train a generator, or resume its training.

    Raises:
        UsageError: the run directory belongs to a run with another config or is in use, or the data is unusable.
        OSError: the disk is full or not writable; existing checkpoints are unaffected.
        WorkerLost: another process of the job was lost.
        JobTerminated: SIGTERM was received; the last step is saved.
        JobStopped: the maximum number of rollbacks was reached.
    """
    config = checked(GenerateTrainConfig, config)
    run = Path(config.out)
    # Before joining: a process that leaves first would make the others fail for another reason.
    config.data.micro_batch(world_size())
    for folder in map(resolve_path, config.data.tokens):
        if not is_remote(folder) and not folder.exists():
            raise UsageError(
                f"data.tokens={folder} does not exist; give vidvq generate train a directory that vidvq tokenize wrote"
            )
    with training_job(config.lost_after_s) as context, deepspeed_groups():
        tokens = TokenDataset(config.data, config.seed, context.rank, context.size)
        card, dataset = open_training_data(config, tokens)
        with locked_run_directory(run, "vidvq generate train", context):
            record_config(run, config, _MAY_CHANGE)
            if is_checkpoint(step_folder(run, config.steps)):
                info(f"{run} is already complete: {step_folder(run, config.steps)} exists")
                return
            _TrainingLoop(config, run, context, card, dataset).fit()


class _TrainingLoop:
    """State and steps of a training run."""

    def __init__(
        self,
        config: GenerateTrainConfig,
        run: Path,
        context: DistributedContext,
        card: GeneratorCard,
        dataset: ExampleDataset,
    ) -> None:
        self.config, self.run, self.context, self.card, self.dataset = config, run, context, card, dataset
        if context.rank == 0:
            remove_partial_saves(run)
        self.held_out = HeldOutLoss(config, card, context) if config.held_out.tokens else None
        self.trainer = GeneratorTrainer(config, card, context)
        state = latest_state(run, context)
        loaded = state or self._initial_state()
        self.trainer.load_state(loaded)
        if context.rank == 0:
            size = sum(weight.numel() for weight in loaded.tensors["network"].values())
            info(f"resuming from {state.checkpoint}" if state else f"{size / 1e6:.1f} M parameters")
        self.terms, self.by_task = MeanTerms(), {task: MeanTerms() for task in card.tasks}
        self._restart_clock()
        self.writer = open_writer(self.run, self.trainer.progress.step, self.context)
        self.batches: Iterator[Examples] | None = None

    def fit(self) -> None:
        try:
            with StopSignal() as stop_signal:
                self._fit(stop_signal)
        finally:
            if self.writer:
                self.writer.close()

    def _fit(self, stop_signal: StopSignal) -> None:
        config = self.config
        with progress("generate train", config.steps, "steps") if self.context.rank == 0 else nullcontext() as bar:
            if bar:
                bar.advance(self.trainer.progress.step, earlier=True)
            while self.trainer.progress.step < config.steps:
                try:
                    for micro_step in range(config.data.accumulation(self.context.size)):
                        self._train_micro_batch(micro_step)
                    done = self.trainer.progress.step + 1
                    stop = any_rank(stop_signal.received, self.context)
                    saves = done % config.checkpoint_every == 0 or done == config.steps
                    if saves or stop:
                        check_weights({"generator": self.trainer.network}, self.context)
                except RollbackNeeded as problem:
                    lost = self._roll_back(str(problem))
                    if bar:
                        bar.advance(-lost)
                    continue
                self.trainer.finish_step()
                self.steps += 1
                note = self._log(done) if done % config.log_every == 0 or done == config.steps else None
                if bar:
                    bar.advance(note=note)
                if self.held_out and (done % config.held_out.every == 0 or done == config.steps):
                    self._evaluate(done, saves)
                if saves or stop:
                    self._save()
                if stop and done < config.steps:
                    raise stop_signal.error(done)

    def _train_micro_batch(self, micro_step: int) -> None:
        while True:
            examples = self._next(micro_step)
            result = self.trainer.forward_backward(examples, micro_step)
            if not isinstance(result, Skipped):
                self.terms.add(result)
                self.by_task[examples.task].add(result)
                return
            skip_batch(self.trainer.progress, result, self.context)
            self.batches = None

    def _next(self, micro_step: int) -> Examples:
        started = monotonic()
        if self.batches is None:
            self.batches = iter_micro_batches(self.dataset, self.trainer.progress.batch, micro_step)
        examples = next(self.batches)
        self.waited_s += monotonic() - started
        self.tokens += examples.tokens.codes.numel() * self.context.size
        return examples

    def _initial_state(self) -> TrainingState:
        """Return the state before the first step."""
        vectors = None
        if self.config.code_vectors is not None:
            tokenizer = load_matching_tokenizer(resolve_checkpoint(self.config.code_vectors), self.card, "code_vectors")
            vectors = code_vectors(tokenizer, self.trainer.network.digits)
        return self.trainer.initial_state(vectors)

    def _roll_back(self, problem: str) -> int:
        """Load the last checkpoint and continue with the data after the bad batch; return the number of lost steps.

        Raises:
            JobStopped: the maximum number of rollbacks was reached.
        """
        lost = roll_back(
            self.trainer,
            lambda: latest_state(self.run, self.context) or self._initial_state(),
            problem,
            limit=self.config.guard.rollbacks,
            remedy="lower optimizer.lr, or use precision=fp32",
            context=self.context,
        )
        if self.writer:
            self.writer.close()
            self.writer = open_writer(self.run, self.trainer.progress.step, self.context)
        self.batches = None
        for terms in (self.terms, *self.by_task.values()):
            terms.reset()
        self._restart_clock()
        return lost

    def _save(self) -> None:
        """Write a checkpoint. Collective: call on every rank."""
        state = self.trainer.state_dict()
        if self.context.rank == 0:
            save_checkpoint(self.run, state, self.config.keep_checkpoints, {}, self._write)
        barrier()
        self._restart_clock()

    def _write(self, folder: Path, tensors: dict[str, np.ndarray], training: Path) -> None:
        fingerprint = write_generator(folder, self.card, tensors, self.trainer.progress.step, training)
        info(f"saved {folder} (generator {fingerprint[:12]})")

    def _log(self, step: int) -> str | None:
        """Write the metrics since the last call; return a note for the progress bar on rank 0. Collective."""
        metrics = self.terms.compute_and_reset(self.context)
        for task, terms in self.by_task.items():
            if terms.count:
                metrics[f"loss_{task}"] = terms.compute_and_reset(self.context)["loss"]
        elapsed_s = max(monotonic() - self.started, 1e-9)
        metrics |= self.trainer.optimizer_metrics() | {
            "step_s": elapsed_s / max(self.steps, 1),
            "data_wait": self.waited_s / elapsed_s,
            "tokens_per_s": self.tokens / elapsed_s,
        }
        self._restart_clock()
        if not self.writer:
            return None
        self.writer.scalars(step, metrics)
        return f"loss {metrics['loss'] / log(2):.2f} bits, {metrics['tokens_per_s']:.0f} tokens/s"

    def _evaluate(self, step: int, saves: bool) -> None:
        assert self.held_out is not None
        bits = self.held_out.measure(self.trainer.average.state_dict())
        # See vidvq.train.loop.
        best = saves and self.trainer.progress.record_score(-bits)
        self._restart_clock()
        if self.writer:
            self.writer.scalars(step, {"held_out_bits": bits})
            note = ", best checkpoint so far" if best else ""
            info(f"held out at step {step}: {bits:.3f} bits per token{note}")

    def _restart_clock(self) -> None:
        """Measure times and rates from now on."""
        self.started, self.waited_s, self.tokens, self.steps = monotonic(), 0.0, 0, 0
