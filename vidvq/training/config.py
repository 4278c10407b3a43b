"""Settings shared by all training runs, and the settings that an engine reads."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field

from vidvq.errors import UsageError
from vidvq.training.schedule import learning_rate

NonNegative = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=1)]
# What generators of NumPy and torch take.
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam optimizer with a learning rate that warms up linearly and then decays.

    Attributes:
        kind: ``adamw``, or ``radam`` with decoupled weight decay.
        lr: peak learning rate, reached at the end of the warm-up (above 0).
        betas: decay rates of the running averages of the gradient and of its square (0 to below 1).
        eps: term added to the denominator for numerical stability (above 0).
        weight_decay: decoupled weight decay, multiplied by the learning rate (0 or more).
        warmup_steps: length of the warm-up (steps).
        schedule: learning rate after the warm-up: ``cosine``, or ``wsd`` (warmup-stable-decay): constant, then a linear
            decay.
        decay: length of the decay of ``schedule=wsd``, as a fraction of the steps of the run (above 0, up to 1).
        final_lr: learning rate at the end of the run, after the last step, as a fraction of ``lr`` (0 to 1).
        clip_norm: maximum global norm of the gradients (above 0).
        fused: whether to use PyTorch's fused AdamW kernel; requires ``kind=adamw``.
        offload: whether to keep the optimizer state on the CPU and update it there with DeepSpeed's compiled Adam;
            requires ``kind=adamw`` and ``zero_stage`` 1 to 3.
    """

    kind: Literal["adamw", "radam"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: NonNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    fused: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        if self.kind != "adamw" and (self.fused or self.offload):
            raise UsageError(f"kind={self.kind} has no fused or offloaded implementation; use kind=adamw")

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate at a step (counted from 0) of a run of ``steps`` steps."""
        decay = self.decay if self.schedule == "wsd" else None
        return learning_rate(step, steps, self.lr, self.final_lr, self.warmup_steps, decay)


@dataclass(frozen=True)
class GuardConfig:
    """Handling of bad batches.

    Attributes:
        spike: ratio to the median of recent losses above which a batch is skipped (above 1). Batches with a non-finite
            loss are always skipped; skipped batches leave the training state unchanged.
        patience: number of consecutive batches that may be skipped (1 or more). One more rolls back to the last
            checkpoint, and training continues with the data after the skipped batches.
        rollbacks: maximum number of rollbacks before the run stops (0 or more).
    """

    spike: Annotated[float, Field(gt=1)] = 10.0
    patience: Annotated[int, Field(ge=1)] = 3
    rollbacks: Annotated[int, Field(ge=0)] = 3


class BatchSettings(Protocol):
    """Sizes of the batches of a run."""

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step, over all processes and micro-batches."""
        ...

    def micro_batch(self, ranks: int) -> int:
        """Return the number of samples per micro-batch of one process."""
        ...

    def accumulation(self, ranks: int) -> int:
        """Return the number of micro-batches of a process per step."""
        ...


class EngineSettings(Protocol):
    """The settings of a run that an engine depends on."""

    @property
    def data(self) -> BatchSettings:
        """Batching."""
        ...

    @property
    def zero_stage(self) -> int:
        """DeepSpeed ZeRO stage (0 to 3)."""
        ...

    @property
    def precision(self) -> str:
        """Autocast dtype: ``fp32``, ``bf16`` or ``fp16``."""
        ...

    @property
    def lost_after_s(self) -> float:
        """Time limit of a collective operation (seconds)."""
        ...


def check_zero_stage(config: EngineSettings, *optimizers: OptimizerConfig) -> None:
    """Reject a ZeRO stage that does not support the precision of a run, or its optimizers.

    Raises:
        UsageError: the stage does not support one of them.
    """
    if config.zero_stage == 0 and any(optimizer.offload for optimizer in optimizers):
        raise UsageError("offload=true needs zero_stage 1 to 3, but zero_stage=0")
    if config.precision == "fp16" and config.zero_stage:
        # Under ZeRO, DeepSpeed (0.19) does not report overflows to its loss scaler, whose initial scale is too high, so
        # every step is skipped. It also clips gradients before unscaling them.
        raise UsageError(
            f"zero_stage={config.zero_stage} does not support precision=fp16; use precision=bf16, or zero_stage=0"
        )
