"""Settings of `vidvq generate train`."""

from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vidvq.data import TokenDataConfig
from vidvq.errors import UsageError
from vidvq.formats.generator import Objective
from vidvq.generate.transformer import TransformerConfig
from vidvq.training.config import FORBID, GuardConfig, NonNegative, OptimizerConfig, Steps


@dataclass(frozen=True)
class TaskConfig:
    """What the generator is trained for: the weight of each task, by which the task of a batch is drawn.

    Attributes:
        generate: weight of generating whole clips.
        predict: weight of continuing given frames.
        interpolate: weight of filling in the frames between given ones; needs ``pixels`` and ``objective=masked``.
        fill: weight of filling in a part of the picture; needs ``pixels`` and ``objective=masked``.
    """

    __pydantic_config__: ClassVar = FORBID

    generate: NonNegative = 1.0
    predict: NonNegative = 1.0
    interpolate: NonNegative = 0.0
    fill: NonNegative = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each task above 0, by name."""
        named = {each.name: float(getattr(self, each.name)) for each in fields(self)}
        return {name: weight for name, weight in named.items() if weight > 0}


@dataclass(frozen=True)
class PixelConfig:
    """The clips that the tokens were made from: their pixels, for tasks with blanked conditions, and their columns.

    Attributes:
        clips: directory of the clip shards; one for each directory of tokens.
        tokenizer: checkpoint, or training run, that made the tokens; encodes blanked clips. None: the bundled one.
    """

    __pydantic_config__: ClassVar = FORBID

    clips: tuple[str, ...]
    tokenizer: str | None = None


@dataclass(frozen=True)
class ConditionConfig:
    """Conditions from columns beside the clips in ``pixels.clips``, or carried along with them (``carried.NAME``).

    Attributes:
        label: column with the class of a clip (text or a number); None for no class condition.
        actions: column with the action of each frame: a JSON list with a number, or a list of numbers, for each frame
            of the clip, which led to that frame; None for no action condition.
        drop: share of the samples that are trained without conditions, for classifier-free guidance (0 to below 1).
    """

    __pydantic_config__: ClassVar = FORBID

    label: str | None = None
    actions: str | None = None
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.1


@dataclass(frozen=True)
class HeldOutConfig:
    """Loss on held-out tokens during training.

    Attributes:
        tokens: directory of held-out token shards; None for no evaluation.
        every: evaluation interval (steps).
        samples: number of samples, taken from the start of the directory (1 or more).
    """

    __pydantic_config__: ClassVar = FORBID

    tokens: str | None = None
    every: Steps = 500
    samples: Annotated[int, Field(ge=1)] = 32


@dataclass(frozen=True)
class GenerateTrainConfig:
    """Settings of `vidvq generate train`.

    Attributes:
        data: training tokens and batching.
        out: run directory, on a file system that all machines share: checkpoints, ``metrics.jsonl`` and TensorBoard
            events.
        seed: seed of the initial weights, the data order and the randomness of each step.
        steps: number of optimizer steps (steps).
        objective: ``masked`` predicts hidden codes from all others, in few parallel steps (Chang et al. 2022; Yu et al.
            2023); ``next`` generates one latent frame after the other, each in few parallel steps.
        model: size and attention of the transformer.
        tasks: weights of the tasks.
        pixels: the clips that the tokens were made from; None where neither blanked pixels nor columns are needed.
        conditions: conditions from columns.
        optimizer: optimizer.
        guard: handling of bad batches.
        held_out: loss on held-out tokens.
        ema_decay: decay of the averaged weights, which checkpoints contain (from 0, below 1); smaller during the first
            steps.
        log_every: interval of metrics (steps).
        checkpoint_every: interval of checkpoints (steps).
        keep_checkpoints: number of newest checkpoints to keep (1 or more); the one with the lowest held-out loss is
            kept in addition.
        zero_stage: DeepSpeed ZeRO stage (0 to 3).
        precision: autocast type: ``fp32``, ``bf16`` or ``fp16``. Weights are always fp32.
        lost_after_s: time limit of a collective operation (seconds), longer than the slowest save.
    """

    __pydantic_config__: ClassVar = FORBID

    data: TokenDataConfig
    out: str = "runs/generate"
    seed: int = 0
    steps: Steps = 100_000
    objective: Objective = "masked"
    model: TransformerConfig = field(default_factory=TransformerConfig)
    tasks: TaskConfig = field(default_factory=TaskConfig)
    pixels: PixelConfig | None = None
    conditions: ConditionConfig = field(default_factory=ConditionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    log_every: Steps = 10
    checkpoint_every: Steps = 1000
    keep_checkpoints: Steps = 3
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    lost_after_s: Annotated[float, Field(gt=0)] = 600.0

    def __post_init__(self) -> None:
        tasks = self.tasks.weights
        if not tasks:
            raise UsageError("tasks has no weight above 0; set one, such as tasks.generate=1")
        blanked = sorted(BLANKED_TASKS & tasks.keys())
        if blanked and self.objective == "next":
            raise UsageError(f"tasks.{blanked[0]} needs objective=masked: its condition lies in the future too")
        if blanked and self.pixels is None:
            raise UsageError(
                f"tasks.{blanked[0]} needs the pixels of the clips; set pixels.clips= to the directory of clip shards "
                "that data.tokens was made from"
            )
        for name in ("label", "actions"):
            if getattr(self.conditions, name) and self.pixels is None:
                raise UsageError(f"conditions.{name} is a column of clips; set pixels.clips= to their directory")
        if "://" in self.out:
            raise UsageError(f"out={self.out} must be a directory on a file system that all machines share")
        if self.zero_stage == 0 and self.optimizer.offload:
            raise UsageError("offload=true needs zero_stage 1 to 3, but zero_stage=0")
        if self.precision == "fp16" and self.zero_stage:
            raise UsageError(
                f"zero_stage={self.zero_stage} does not support precision=fp16; use precision=bf16, or zero_stage=0"
            )
        if self.tasks.predict and self.data.latents < 2:
            raise UsageError(f"data.latents={self.data.latents} leaves nothing to predict; set 2 or more")


# Tasks whose condition is the video with its hidden pixels blanked, encoded.
BLANKED_TASKS = frozenset({"interpolate", "fill"})
