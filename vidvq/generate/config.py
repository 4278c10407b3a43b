"""Settings of `vidvq generate train`."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from vidvq.data import TokenDataConfig
from vidvq.data.config import one_or_many
from vidvq.errors import UsageError
from vidvq.formats.generator import Objective
from vidvq.formats.plugin_reference import TokenizerName
from vidvq.generate.network.block import TransformerConfig
from vidvq.settings import Located, PathName, absolute_path
from vidvq.training.config import Decay, GuardConfig, NonNegative, OptimizerConfig, Seed, Steps, check_zero_stage


def _absolute_folder(name: str) -> str:
    """Make the path of a text encoder absolute; a name on the hub is returned unchanged."""
    return absolute_path(name) if Path(name).is_dir() else name


@dataclass(frozen=True)
class TaskConfig:
    """Training tasks. The task of a batch is drawn in proportion to these weights (0 or more).

    Attributes:
        generate: weight of generating whole clips.
        predict: weight of continuing given frames.
        interpolate: weight of generating the frames between given ones; needs ``pixels`` and ``objective=masked``.
        fill: weight of generating a region of every frame; needs ``pixels`` and ``objective=masked``.
    """

    generate: NonNegative = 1.0
    predict: NonNegative = 1.0
    interpolate: NonNegative = 0.0
    fill: NonNegative = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """Weights above 0, by task."""
        named = {each.name: float(getattr(self, each.name)) for each in fields(self)}
        return {name: weight for name, weight in named.items() if weight > 0}


@dataclass(frozen=True)
class PixelConfig:
    """Source clips of the tokens: pixels for the tasks with blanked conditions, and columns.

    Attributes:
        clips: directory of clip shards, or a list with one for each directory of tokens.
        tokenizer: checkpoint or training run that made the tokens, to encode blanked clips; None for the bundled one.
    """

    clips: Annotated[tuple[PathName, ...], BeforeValidator(one_or_many), Field(min_length=1)]
    tokenizer: TokenizerName | None = None


@dataclass(frozen=True)
class ConditionConfig:
    """Conditions, read from columns of ``pixels.clips``: ``NAME`` in ``columns/``, or ``carried.NAME`` of a list.

    Attributes:
        label: column with the class of a clip (text or a number); None for no class condition.
        actions: column with the actions of a clip: a JSON list with one number, or one list of numbers, per frame: the
            action that led to the frame; None for no action condition.
        text: column with a text about a clip; None for no text condition. Needs ``text_encoder``.
        text_encoder: T5 encoder or CLIP text model of the library transformers, as a folder or a name on the hub; it
            stays frozen.
        drop: fraction of the samples trained without conditions, for classifier-free guidance (0 to below 1).
    """

    label: str | None = None
    actions: str | None = None
    text: str | None = None
    text_encoder: Annotated[str, Located(_absolute_folder)] | None = None
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.1


@dataclass(frozen=True)
class HeldOutConfig:
    """Evaluation on held-out tokens during training.

    Attributes:
        tokens: directory of held-out token shards; None for no evaluation.
        every: evaluation interval (steps).
        samples: number of samples to evaluate, from the start of the directory (1 or more).
    """

    tokens: PathName | None = None
    every: Steps = 500
    samples: Annotated[int, Field(ge=1)] = 32


@dataclass(frozen=True)
class GenerateTrainConfig:
    """Settings of `vidvq generate train`.

    Attributes:
        data: training tokens and batching.
        out: run directory for checkpoints, ``metrics.jsonl`` and TensorBoard events, on a file system that all nodes
            share.
        seed: seed of the initial weights, the data order and the randomness of each step.
        steps: number of optimizer steps.
        objective: ``masked`` predicts masked codes from all others (Chang et al. 2022; Yu et al. 2023); ``next``
            predicts one latent frame after another. Both decode in few parallel steps: of the clip, or of each latent
            frame.
        model: size and attention of the transformer.
        tasks: weights of the training tasks.
        pixels: source clips of the tokens; None if neither blanked conditions nor columns are used.
        code_vectors: checkpoint or training run of the tokenizer that made the tokens, from whose code vectors the
            embeddings and output layers start, so that similar codes are treated alike; None for random weights.
        conditions: conditions read from columns.
        optimizer: optimizer and learning-rate schedule.
        guard: handling of bad batches.
        held_out: evaluation on held-out tokens.
        ema_decay: decay of the averaged weights that checkpoints contain (0 to below 1); smaller during the first
            steps.
        log_every: logging interval (steps).
        checkpoint_every: checkpoint interval (steps).
        keep_checkpoints: number of newest checkpoints to keep (1 or more); the one with the lowest held-out loss, of
            those at a step with an evaluation, is kept too.
        zero_stage: DeepSpeed ZeRO stage (0 to 3).
        precision: autocast dtype: ``fp32`` (on GPUs without TF32), ``bf16`` or ``fp16``. Weights are always fp32.
        lost_after_s: timeout of a collective operation (seconds); must exceed the duration of the slowest save.
    """

    data: TokenDataConfig
    out: PathName = "runs/generate"
    seed: Seed = 0
    steps: Steps = 100_000
    objective: Objective = "masked"
    model: TransformerConfig = field(default_factory=TransformerConfig)
    tasks: TaskConfig = field(default_factory=TaskConfig)
    pixels: PixelConfig | None = None
    code_vectors: TokenizerName | None = None
    conditions: ConditionConfig = field(default_factory=ConditionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    ema_decay: Decay = 0.999
    log_every: Steps = 10
    checkpoint_every: Steps = 1000
    keep_checkpoints: Steps = 3
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    lost_after_s: Annotated[float, Field(gt=0, le=1e6)] = 600.0

    def __post_init__(self) -> None:
        tasks = self.tasks.weights
        if not tasks:
            raise UsageError("tasks has no weight above 0; set one, such as tasks.generate=1")
        blanked = sorted(BLANKED_TASKS & tasks.keys())
        if blanked and self.objective == "next":
            raise UsageError(f"tasks.{blanked[0]} needs objective=masked, because its condition includes later frames")
        if blanked and self.pixels is None:
            raise UsageError(
                f"tasks.{blanked[0]} needs pixels; set pixels.clips= to the clip shards that data.tokens was made from"
            )
        if bool(self.conditions.text) != bool(self.conditions.text_encoder):
            raise UsageError(
                f"conditions.text={self.conditions.text} conditions.text_encoder={self.conditions.text_encoder}: texts "
                "need both, the column and a text encoder (a folder of a T5 encoder or a CLIP text model)"
            )
        for name in ("label", "actions", "text"):
            if getattr(self.conditions, name) and self.pixels is None:
                raise UsageError(f"conditions.{name} is a column of the clips; set pixels.clips= to their directory")
        if "://" in self.out:
            raise UsageError(f"out={self.out} must be a directory on a file system that all nodes share")
        check_zero_stage(self, self.optimizer)
        if self.tasks.predict and self.data.latents < 2:
            raise UsageError(f"data.latents={self.data.latents} leaves nothing to predict; set 2 or more")


# Tasks whose condition is the encoded video with its hidden pixels blanked.
BLANKED_TASKS = frozenset({"interpolate", "fill"})
