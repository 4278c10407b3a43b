"""The trainer: networks, engines, losses and statistics of a run.

Construction only allocates memory; it reads no files and does not change the random state. Resume and rollback load a
:class:`~vidvq.training.training_state.TrainingState`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.metrics.perceptual import PerceptualDistance
from vidvq.model.pixels import MAX_PIXEL
from vidvq.model.training_layers import use_training_layers
from vidvq.train.activation_checkpointing import checkpoint_activations
from vidvq.train.codebook_usage import UsageCounter
from vidvq.train.config import TrainConfig
from vidvq.train.initialization import build_networks, frozen_names
from vidvq.train.objective import Objective
from vidvq.train.profiler import AVERAGE, BACKWARD, DISCRIMINATOR, FORWARD, LOSSES, phase
from vidvq.training.distributed import DistributedContext, all_reduce_mean, to_host
from vidvq.training.ema import WeightAverage
from vidvq.training.engine import (
    full_state_dict,
    half_precision,
    load_optimizer_state,
    load_weights,
    make_engine,
    optimizer_state,
    set_lr,
)
from vidvq.training.guard import BufferSnapshot, LossSpikeGuard, RollbackNeeded, Skipped
from vidvq.training.random_state import sample_generators, seed_micro_batch
from vidvq.training.training_state import Progress, TrainingState


class Trainer:
    """Trains the generator (the tokenizer) and the discriminator.

    Args:
        config: config of the run.
        context: this process in the job; construct a trainer on every rank.
        perceptual: network of the perceptual loss, or None.

    Attributes:
        config: config of the run.
        context: this process in the job.
        tokenizer: the generator; its weights are sharded under ZeRO 3.
        discriminator: the discriminator; its weights are sharded under ZeRO 3.
        average: moving average of the weights.
        usage: counts of code usage.
        objective: loss functions.
        guard: detection of loss spikes.
        progress: counters and running statistics.
        stop_requested: returns whether this rank was asked to stop; set by the caller.
        stop_agreed: whether any rank was asked to stop, as of the last micro-batch; the same on all ranks.
    """

    def __init__(
        self, config: TrainConfig, context: DistributedContext, perceptual: PerceptualDistance | None = None
    ) -> None:
        self.config, self.context = config, context
        tokenizer, discriminator = build_networks(config)
        if config.train_only == "decoder":
            tokenizer.encoder.requires_grad_(False).eval()
            tokenizer.quantizer.requires_grad_(False).eval()
        if context.device.type == "cuda":
            use_training_layers(tokenizer)
        # After the training layers: it wraps the forward passes that they replace.
        if config.checkpoint_activations:
            checkpoint_activations(tokenizer)
        # `_check_batch` checks the range on all ranks together, without another read from the device.
        tokenizer.checks_range = False
        if config.compile:
            tokenizer.compile_training()
            discriminator.compile_training()
        self.tokenizer, self.discriminator = tokenizer.to(context.device), discriminator.to(context.device)
        self._generator_engine = make_engine(self.tokenizer, config.generator, config, context)
        self._discriminator_engine = (
            make_engine(self.discriminator, config.discriminator_optimizer, config, context)
            if config.adversarial
            else None
        )
        names = self.tokenizer.inference_state_dict().keys()
        self.average = WeightAverage(self.tokenizer, config.ema_decay, names, frozen_names(config))
        self.usage = UsageCounter(self.tokenizer, config.usage_every, context)
        factors = (self.tokenizer.temporal_factor, self.tokenizer.spatial_factor, self.tokenizer.spatial_factor)
        # On CPUs bf16 is slower than fp32; in fp16 the gradients of this network would underflow.
        half = torch.bfloat16 if config.precision == "bf16" and context.device.type == "cuda" else None
        self.objective = Objective(config, factors, perceptual, half)
        if config.compile:
            self.objective.compile()
        self.guard, self._buffers = LossSpikeGuard(config.guard), BufferSnapshot(self.tokenizer)
        self.progress = Progress()
        self.stop_requested: Callable[[], bool] = lambda: False
        self.stop_agreed = False

    def load_state(self, state: TrainingState) -> None:
        """Replace the training state, at any time. Collective: call on every rank.

        Args:
            state: state to load.

        Raises:
            UsageError: the state is of other networks.
        """
        self._load_network("tokenizer", self._generator_engine, state)
        load_optimizer_state(self._generator_engine, state.tensors["generator_optimizer"])
        if self._discriminator_engine:
            self._load_network("discriminator", self._discriminator_engine, state)
            load_optimizer_state(self._discriminator_engine, state.tensors["discriminator_optimizer"])
        self.progress = replace(state.progress, losses=list(state.progress.losses))
        self.average.load_state_dict(state.tensors["average"], self.progress.average_updates)
        self.usage.load_state_dict(state.tensors["usage"])
        self.guard.restore(self.progress.losses)
        self.objective.lecam.real, self.objective.lecam.fake = self.progress.lecam

    def state_dict(self) -> TrainingState:
        """Return the state after a finished step; tensors may alias live ones. Collective: call on every rank."""
        tensors = {
            "tokenizer": full_state_dict(self.tokenizer),
            "average": self.average.state_dict(),
            "generator_optimizer": optimizer_state(self._generator_engine),
            "usage": self.usage.state_dict(),
        }
        if self._discriminator_engine:
            tensors["discriminator"] = full_state_dict(self.discriminator)
            tensors["discriminator_optimizer"] = optimizer_state(self._discriminator_engine)
        lecam = self.objective.lecam
        progress = replace(
            self.progress,
            average_updates=self.average.updates,
            lecam=(lecam.real, lecam.fake),
            losses=self.guard.losses,
        )
        return TrainingState(progress, tensors)

    def forward_backward(self, video: Tensor, micro_step: int) -> dict[str, Tensor] | Skipped:
        """Run forward and backward on one micro-batch; the optimizers step on the last one of a step.

        Args:
            video: micro-batch ``b c t h w`` of this rank, in [-1, 1].
            micro_step: index of the micro-batch in the step.

        Returns:
            Loss terms by name, detached; or the reason to skip the micro-batch, which leaves the state unchanged.

        Raises:
            RollbackNeeded: the training state is bad.
        """
        step = self.progress.step
        self._set_learning_rates(step)
        batch, micro_batch = self.progress.batch, micro_step * self.context.size + self.context.rank
        seed_micro_batch(self.config.seed, step, batch, micro_batch)
        first = micro_batch * len(video)
        generators = sample_generators(self.config.seed, batch, first, len(video), video.device)
        self._buffers.save()
        with phase(FORWARD):
            out = self._generator_engine(self.objective.tokenizer_input(video, generators))
        with phase(LOSSES):
            terms = self.objective.generator(step, video, out, self._discriminate_frozen)
        engine = self._discriminator_engine if step >= self.config.discriminator_start else None
        loss, discriminator_terms = None, {}
        if engine is not None:
            with phase(DISCRIMINATOR):
                fake = out.reconstruction[: len(video)].detach()
                loss, discriminator_terms = self.objective.discriminator(step, video, fake, engine)
        if skipped := self._check_batch(video, terms.guarded, loss, discriminator_terms):
            self._buffers.restore()
            return skipped
        with phase(BACKWARD):
            self._generator_engine.backward(terms.total)
            self._generator_engine.step()
        self.usage.add(out.codes[: len(video)].detach())
        if engine is not None:
            with phase(DISCRIMINATOR):
                engine.backward(loss)
                engine.step()
        return terms.terms | discriminator_terms

    def finish_step(self) -> None:
        """Complete a step after its last micro-batch: update the averaged weights and the counters."""
        with phase(AVERAGE):
            self.average.update()
        self.progress.step += 1
        self.progress.batch += 1
        self.usage.finish_step(self.progress.step)

    def optimizer_metrics(self) -> dict[str, float]:
        """Return the learning rate and gradient norms of the last step."""
        norms = {"grad_norm": self._generator_engine.get_global_grad_norm()}
        if self._discriminator_engine and self.progress.step > self.config.discriminator_start:
            norms["grad_norm_discriminator"] = self._discriminator_engine.get_global_grad_norm()
        lr = self.config.generator.lr_at(self.progress.step - 1, self.config.steps)
        return {"lr": lr} | {name: float(norm) for name, norm in norms.items() if norm is not None}

    def _check_batch(
        self, video: Tensor, guarded: Tensor, discriminator_loss: Tensor | None, terms: dict[str, Tensor]
    ) -> Skipped | None:
        """Decide whether to train on a micro-batch, the same on all ranks. The only read from the device in a step.

        Args:
            video: the micro-batch.
            guarded: loss that the guard checks.
            discriminator_loss: loss of the discriminator; None in steps without it.
            terms: terms and metrics of that loss.

        Returns:
            The reason to skip the micro-batch; None if it is good.

        Raises:
            RollbackNeeded: the training state is bad.
        """
        # One pass over the pixels, without a copy of their absolute values. NaN is outside as well.
        outside = torch.stack(video.aminmax()).abs().amax().le(MAX_PIXEL).logical_not()
        values = [outside, guarded, video.new_full((), float(self.stop_requested()))]
        if discriminator_loss is not None:
            values += [discriminator_loss.detach(), terms["logits_real"], terms["logits_fake"]]
        bad, mean, stop, *others = to_host(all_reduce_mean(torch.stack([value.float() for value in values])))
        self.stop_agreed = self.stop_agreed or stop > 0
        if bad > 0:
            return self.guard.skip("its pixels are not in [-1, 1]")
        if skipped := self.guard.check(mean):
            return skipped
        if others:
            loss, on_real, on_fake = others
            if not math.isfinite(loss):
                raise RollbackNeeded(f"the discriminator's loss is {loss}")
            self.objective.lecam.update(on_real, on_fake)
        return None

    def _discriminate_frozen(self, video: Tensor) -> Tensor:
        """Compute logits for the generator loss with frozen weights of the discriminator.

        Calls the module, not the engine: through the engine, DeepSpeed would treat the backward pass of the generator
        as one of the discriminator.
        """
        half = half_precision(self.config)
        self.discriminator.requires_grad_(False)
        with torch.autocast(self.context.device.type, dtype=half, enabled=half is not None):
            logits = self.discriminator(video)
        self.discriminator.requires_grad_(True)
        return logits.float()

    def _set_learning_rates(self, step: int) -> None:
        config = self.config
        set_lr(self._generator_engine, config.generator.lr_at(step, config.steps))
        if self._discriminator_engine:
            start = config.discriminator_start
            lr = config.discriminator_optimizer.lr_at(max(step - start, 0), config.steps - start)
            set_lr(self._discriminator_engine, lr)

    def _load_network(self, name: str, engine: Any, state: TrainingState) -> None:
        try:
            load_weights(engine, state.tensors.get(name, {}))
        except ValueError as error:
            raise UsageError(
                f"{state.checkpoint} has another {name} than this config; use the config of the run, or another out="
            ) from error
