"""What `vidvq train` can be told. The DeepSpeed configuration is derived from it; there is no second file."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vidvq.data import DataConfig
from vidvq.errors import UsageError
from vidvq.model import DiscriminatorConfig, TokenizerConfig
from vidvq.train.schedule import Weight, is_used

FORBID = {"extra": "forbid"}
NonNegative = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class OptimizerConfig:
    """An Adam with a linear warm-up and a cosine to ``final_lr``.

    Attributes:
        kind: AdamW, or RAdam with decoupled weight decay.
        lr: at the end of the warm-up.
        final_lr: at the last step, as a share of ``lr``.
        warmup_steps: steps from 0 to ``lr``.
        clip_norm: gradients are scaled down to this global norm.
        fused: torch's fused kernel of AdamW.
        offload: state and step on the CPU, by DeepSpeed's compiled Adam; needs ZeRO 1 to 3.
    """

    __pydantic_config__: ClassVar = FORBID

    kind: Literal["adamw", "radam"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: NonNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    fused: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        if self.kind != "adamw" and (self.fused or self.offload):
            raise UsageError(f"kind={self.kind} has no fused or offloaded form; take kind=adamw")


@dataclass(frozen=True)
class PerceptualConfig:
    """The network of the perceptual loss.

    Attributes:
        kind: ``st_lpips`` reads all its weights from the package ``stlpips_pytorch``; ``lpips`` reads its linear
            weights from the package ``lpips`` and the network's from ``backbone``.
        net: its network.
        backbone: torchvision's ImageNet weights of ``net``, a .pth file; for ``lpips`` alone.
        frames: frames per clip that are compared, drawn anew at each step; None compares all.
    """

    __pydantic_config__: ClassVar = FORBID

    kind: Literal["st_lpips", "lpips"] = "st_lpips"
    net: Literal["alex", "vgg"] = "alex"
    backbone: str | None = None
    frames: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if (self.kind == "lpips") != (self.backbone is not None):
            raise UsageError(f"backbone={self.backbone} goes with kind=lpips, and kind=lpips with a backbone")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 leaves a term out. A weight is a number, or a ramp ``{begin, end, last}``.

    Attributes:
        l1, l2: on pixels in [-1, 1].
        wavelet: L1 on the details of a Haar transform over height and width, two levels.
        perceptual: weight of the distance that ``perceptual_net`` measures, frame by frame.
        commitment: weight of the quantizer's own loss: commitment, and entropy where the codebook has one.
        masked: L1 on clips of which ``mask`` hid a part of what the encoder saw.
        adversarial: weight of the generator's adversarial loss; a VQ-VAE has 0.
        adversarial_kind: of both players.
        adaptive: scale ``adversarial`` at each step by the norm of the other losses' gradient at the reconstruction
            over that of the adversarial one's, up to ``adaptive_limit``.
        adversarial_start: first step of it; the discriminator trains from ``discriminator_warmup`` steps before.
        r1: weight of the gradient penalty on real video.
        lecam: weight of the LeCAM regulariser on the discriminator.
    """

    __pydantic_config__: ClassVar = FORBID

    l1: Weight = 1.0
    l2: Weight = 0.0
    wavelet: Weight = 0.0
    perceptual: Weight = 0.0
    perceptual_net: PerceptualConfig = field(default_factory=PerceptualConfig)
    commitment: Weight = 0.25
    masked: Weight = 0.0
    adversarial: Weight = 0.1
    adversarial_kind: Literal["hinge", "non_saturating"] = "hinge"
    adaptive: bool = False
    adaptive_limit: NonNegative = 10.0
    adversarial_start: Annotated[int, Field(ge=0)] = 0
    discriminator_warmup: Annotated[int, Field(ge=0)] = 0
    r1: Weight = 0.0
    lecam: Weight = 0.01


@dataclass(frozen=True)
class MaskConfig:
    """What ``loss.masked`` hides from the encoder (He et al. 2022; videos: Tong et al. 2022).

    Attributes:
        clips: share of a pass's clips that are shown a second time, with blocks hidden.
        blocks: share of the blocks that are hidden.
        size: of a block in latents: along time, height and width.
    """

    __pydantic_config__: ClassVar = FORBID

    clips: Annotated[float, Field(gt=0, le=1)] = 0.25
    blocks: Annotated[float, Field(gt=0, lt=1)] = 0.5
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 2, 2)


@dataclass(frozen=True)
class GuardConfig:
    """When a batch is not learned from.

    Attributes:
        spike: a batch whose reconstruction loss is so many times the median of the last ones, or is not a number, is
            skipped; nothing it touched stays.
        patience: batches in a row; one more, and the run goes back to its last checkpoint and goes on with the data
            after them.
        rollbacks: how often that may happen before the run gives up.
    """

    __pydantic_config__: ClassVar = FORBID

    spike: Annotated[float, Field(gt=1)] = 10.0
    patience: Annotated[int, Field(ge=1)] = 3
    rollbacks: Annotated[int, Field(ge=0)] = 3


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring on held-out clips while training.

    Attributes:
        clips: a directory that ``vidvq shard`` finished, or None to leave it out.
        every: steps.
        num_clips: the first so many; the same each time.
        metric: what the best checkpoint is best by.
        shown: clips that TensorBoard shows beside their reconstruction.
    """

    __pydantic_config__: ClassVar = FORBID

    clips: str | None = None
    every: Steps = 1000
    num_clips: Annotated[int, Field(ge=1)] = 32
    metric: Literal["psnr", "ssim", "perceptual"] = "psnr"
    shown: Annotated[int, Field(ge=0)] = 4


@dataclass(frozen=True)
class TrainConfig:
    """`vidvq train`.

    Attributes:
        out: the run's directory: checkpoints, ``metrics.jsonl``, TensorBoard events.
        steps: optimizer steps of the generator.
        model, discriminator: the networks.
        start_from: a checkpoint whose weights to start from.
        train_only: ``decoder`` keeps encoder and codebooks as ``start_from`` has them, so that its tokens stay valid.
        data: what is read.
        generator, discriminator_optimizer: how each engine steps.
        ema_decay: of the averaged weights that are saved; approached over the first steps.
        log_every, checkpoint_every: steps.
        usage_every: steps over which the use of codes is counted, over all processes.
        keep_checkpoints: how many of the newest stay; the best stays as well.
        zero_stage: DeepSpeed's ZeRO stage of both engines.
        precision: weights are fp32; bf16 and fp16 are autocast. Quantization is fp32 always.
        checkpoint_activations: compute activations of residual blocks again in the backward pass, to save memory.
        lost_after_s: a process for which the others wait so long is taken for lost, and the job ends. More than the
            slowest save takes.
    """

    __pydantic_config__: ClassVar = FORBID

    data: DataConfig
    out: str = "runs/train"
    seed: int = 0
    steps: Steps = 100_000
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    start_from: str | None = None
    train_only: Literal["all", "decoder"] = "all"
    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    log_every: Steps = 10
    usage_every: Steps = 100
    checkpoint_every: Steps = 5000
    keep_checkpoints: Steps = 3
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpoint_activations: bool = False
    lost_after_s: Annotated[float, Field(gt=0)] = 600.0

    def __post_init__(self) -> None:
        if "://" in self.out:
            raise UsageError(f"out={self.out} must be a folder of a file system that all machines share")
        if self.zero_stage == 0 and (self.generator.offload or self.discriminator_optimizer.offload):
            raise UsageError("zero_stage=0 keeps the optimizer on the device; offload=true needs zero_stage 1 to 3")
        if self.precision == "fp16" and self.zero_stage:
            # Under ZeRO DeepSpeed (0.19) leaves a step that overflowed without telling its loss scaler, which starts
            # too high: every step is skipped. It also clips gradients that are still scaled.
            raise UsageError(
                f"zero_stage={self.zero_stage} does not go with precision=fp16; take bf16, or zero_stage=0"
            )
        if self.train_only == "decoder" and self.start_from is None:
            raise UsageError("train_only=decoder needs a checkpoint whose encoder it keeps; give start_from=")
        if self.train_only == "decoder" and is_used(self.loss.masked):
            raise UsageError("train_only=decoder keeps the encoder, which loss.masked would train; set loss.masked=0")
        if self.evaluation.metric == "perceptual" and not is_used(self.loss.perceptual):
            raise UsageError("evaluation.metric=perceptual needs the network of loss.perceptual; give it a weight")

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator at all."""
        return is_used(self.loss.adversarial) and self.loss.adversarial_start < self.steps

    @property
    def discriminator_start(self) -> int:
        """The first step in which the discriminator trains."""
        return max(self.loss.adversarial_start - self.loss.discriminator_warmup, 0)
