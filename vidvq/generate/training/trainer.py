"""Trainer of a generator: network, engine, averaged weights and guard."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.config import GenerateTrainConfig
from vidvq.generate.network.build import build_network, start_from_vectors
from vidvq.generate.network.code_vectors import DigitVectors
from vidvq.generate.training.examples import Examples
from vidvq.generate.training.objectives import draw_mask
from vidvq.model.device_copy import copy_to_device
from vidvq.training.distributed import DistributedContext, all_reduce_mean
from vidvq.training.ema import WeightAverage
from vidvq.training.engine import (
    full_state_dict,
    load_optimizer_state,
    load_weights,
    make_engine,
    optimizer_state,
    set_lr,
)
from vidvq.training.guard import LossSpikeGuard, Skipped
from vidvq.training.random_state import sample_generators, seed_micro_batch
from vidvq.training.training_state import Progress, TrainingState


class GeneratorTrainer:
    """Trains a generator.

    Args:
        context: distributed context of this process; construct a trainer on every rank.

    Attributes:
        network: transformer; its weights are sharded under ZeRO 3.
        average: exponential moving average of the weights.
        guard: detector of loss spikes.
        progress: counters and running statistics.
    """

    def __init__(self, config: GenerateTrainConfig, card: GeneratorCard, context: DistributedContext) -> None:
        self.config, self.card, self.context = config, card, context
        self.network = build_network(card, config.seed).to(context.device)
        self._engine = make_engine(self.network, config.optimizer, config, context)
        self.average = WeightAverage(self.network, config.ema_decay)
        self.guard = LossSpikeGuard(config.guard)
        self.progress = Progress()
        # Index of the batch that was drawn for last, and its masks.
        self._drawn_for, self._drawn = -1, list[tuple[Tensor, Tensor]]()

    def initial_state(self, vectors: list[DigitVectors] | None) -> TrainingState:
        """Return the state before the first step, with tensors on the CPU.

        Args:
            vectors: code vectors that the embeddings start from; None for random weights.
        """
        network = build_network(self.card, self.config.seed)
        if vectors is not None:
            start_from_vectors(network, vectors, self.config.seed)
        weights = network.state_dict()
        tensors = {"network": weights, "average": weights, "optimizer": {"steps": torch.tensor(0)}}
        return TrainingState(Progress(), tensors)

    def load_state(self, state: TrainingState) -> None:
        """Replace the training state. Collective: call on every rank.

        Raises:
            UsageError: the state does not fit the network.
        """
        try:
            load_weights(self._engine, state.tensors.get("network", {}))
        except ValueError as error:
            raise UsageError(
                f"{state.checkpoint} does not fit the network of this config; use the config of the run, or another "
                "out="
            ) from error
        load_optimizer_state(self._engine, state.tensors["optimizer"])
        self.progress = replace(state.progress, losses=list(state.progress.losses))
        self.average.load_state_dict(state.tensors["average"], self.progress.average_updates)
        self.guard.restore(self.progress.losses)

    def state_dict(self) -> TrainingState:
        """Return the state after a finished step. Tensors may alias the live ones. Collective: call on every rank."""
        tensors = {
            "network": full_state_dict(self.network),
            "average": self.average.state_dict(),
            "optimizer": optimizer_state(self._engine),
        }
        progress = replace(self.progress, average_updates=self.average.updates, losses=self.guard.losses)
        return TrainingState(progress, tensors)

    def forward_backward(self, examples: Examples, micro_step: int) -> dict[str, Tensor] | Skipped:
        """Run forward and backward on one micro-batch; the optimizer steps on the last one of a step.

        Returns:
            Loss terms by name, detached: ``loss`` (nats per hidden code), whose mean over the micro-batches of a step
            is that over its hidden codes; or the reason why the micro-batch was skipped, which leaves the state
            unchanged.

        Raises:
            RollbackNeeded: too many consecutive batches were skipped.
        """
        config, progress = self.config, self.progress
        set_lr(self._engine, config.optimizer.lr_at(progress.step, config.steps))
        micro_batch = micro_step * self.context.size + self.context.rank
        seed_micro_batch(config.seed, progress.step, progress.batch, micro_batch)
        drawn = self._draw(examples)
        mask, kept = drawn[micro_step]
        loss = compute_loss(self._engine, examples, config.objective, mask, kept)
        if skipped := self.guard.check(float(all_reduce_mean(loss))):
            return skipped
        # The engine averages over micro-batches, which have different numbers of hidden codes.
        counts = [int(each.sum()) for each, _ in drawn]
        loss = loss * (counts[micro_step] / all_reduce_mean(loss.new_full((), sum(counts) / len(counts))))
        self._engine.backward(loss)
        self._engine.step()
        return {"loss": loss.detach().float()}

    def finish_step(self) -> None:
        """Complete a step: update the averaged weights and the counters."""
        self.average.update()
        self.progress.step += 1
        self.progress.batch += 1

    def optimizer_metrics(self) -> dict[str, float]:
        """Return the learning rate and the gradient norm of the last step."""
        norm = self._engine.get_global_grad_norm()
        lr = self.config.optimizer.lr_at(self.progress.step - 1, self.config.steps)
        return {"lr": lr} | ({} if norm is None else {"grad_norm": float(norm)})

    def _draw(self, examples: Examples) -> list[tuple[Tensor, Tensor]]:
        """Draw what is hidden of the micro-batches of this rank, once for a batch.

        Args:
            examples: any of the micro-batches, which have one task and one grid.
        """
        config, count, batch = self.config, len(examples.tokens.codes), self.progress.batch
        if self._drawn_for != batch:
            self._drawn_for, self._drawn = batch, []
            for micro_step in range(config.data.accumulation(self.context.size)):
                first = (micro_step * self.context.size + self.context.rank) * count
                generators = sample_generators(config.seed, batch, first, count, torch.device("cpu"))
                drawn = draw_hidden(examples, config.objective, config.conditions.drop, generators)
                self._drawn.append(drawn)
        return self._drawn


def draw_hidden(
    examples: Examples, objective: str, drop: float, generators: Iterable[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Draw what the network does not see of a micro-batch.

    Args:
        examples: micro-batch; of its codes, only the shape matters.
        objective: ``masked`` or ``next``.
        drop: fraction of the samples whose conditions are dropped (0 to below 1).
        generators: source of randomness of each sample, on the CPU.

    Returns:
        The mask ``b t h w`` bool, True for hidden codes, and ``b`` bool, False for samples without conditions.
    """
    _, t, h, w = examples.tokens.codes.shape
    masks, draws = [], []
    for rng in generators:
        masks.append(draw_mask(examples.task, objective, (t, h, w), rng))
        draws.append(torch.rand((), generator=rng))
    return torch.stack(masks), torch.stack(draws) >= drop


def compute_loss(network: torch.nn.Module, examples: Examples, objective: str, mask: Tensor, kept: Tensor) -> Tensor:
    """Compute the mean loss of the hidden codes (nats per code).

    Args:
        network: transformer, or its engine.
        objective: ``masked`` or ``next``.
        mask: result of :func:`draw_hidden`.
        kept: result of :func:`draw_hidden`.

    Returns:
        Scalar with gradient.
    """
    device = next(network.parameters()).device
    codes, kept = (copy_to_device(tensor, device) for tensor in (examples.tokens.codes, kept))
    # The mask stays on the CPU, which must know how many codes are hidden.
    return network(codes, mask, objective == "next", kept=kept, **condition_tensors(examples, device)).mean()


def condition_tensors(examples: Examples, device: torch.device) -> dict[str, Tensor | None]:
    """Return the conditions of a micro-batch as keyword arguments of the network."""
    blanked = examples.blanked
    conditions = {
        "labels": examples.labels,
        "actions": examples.actions,
        "blanked": blanked.codes if blanked else None,
        "visible": blanked.visible if blanked else None,
        "text": examples.text[0] if examples.text else None,
        "text_mask": examples.text[1] if examples.text else None,
    }
    return {name: None if tensor is None else copy_to_device(tensor, device) for name, tensor in conditions.items()}
