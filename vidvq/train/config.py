"""What `vidvq train` can be told. The DeepSpeed configuration is derived from it; there is no second file."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vidvq.data import DataConfig
from vidvq.model import DiscriminatorConfig, TokenizerConfig

FORBID = {"extra": "forbid"}
NonNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine to ``final_lr``.

    Attributes:
        lr: at the end of the warm-up.
        final_lr: at the last step, as a share of ``lr``.
        warmup_steps: steps from 0 to ``lr``.
        clip_norm: gradients are scaled down to this global norm.
    """

    __pydantic_config__: ClassVar = FORBID

    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: NonNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 leaves a term out.

    Attributes:
        l1, l2: on pixels in [-1, 1].
        commitment: keeps the encoder's latents near their codes.
        adversarial: fixed weight of the hinge loss (a VQ-VAE has 0).
        adversarial_start: first step of it; the discriminator trains from ``discriminator_warmup`` steps before.
        lecam: weight of the LeCAM regulariser on the discriminator.
    """

    __pydantic_config__: ClassVar = FORBID

    l1: NonNegative = 1.0
    l2: NonNegative = 0.0
    commitment: NonNegative = 0.25
    adversarial: NonNegative = 0.1
    adversarial_start: Annotated[int, Field(ge=0)] = 0
    discriminator_warmup: Annotated[int, Field(ge=0)] = 0
    lecam: NonNegative = 0.01


@dataclass(frozen=True)
class TrainConfig:
    """`vidvq train`.

    Attributes:
        out: the run's directory: checkpoints, ``metrics.jsonl``, TensorBoard events.
        steps: optimizer steps of the generator.
        model, discriminator: the networks.
        data: what is read.
        generator, discriminator_optimizer: how each engine steps.
        ema_decay: of the averaged weights that are saved; approached over the first steps.
        log_every, checkpoint_every: steps.
        keep_checkpoints: how many of the newest stay.
        zero_stage: DeepSpeed's ZeRO stage of both engines.
        precision: of both engines; quantization is fp32 always.
    """

    __pydantic_config__: ClassVar = FORBID

    data: DataConfig
    out: str = "runs/train"
    seed: int = 0
    steps: Annotated[int, Field(ge=1)] = 100_000
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    log_every: Annotated[int, Field(ge=1)] = 10
    checkpoint_every: Annotated[int, Field(ge=1)] = 5000
    keep_checkpoints: Annotated[int, Field(ge=1)] = 3
    zero_stage: Literal[0, 1, 2] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
