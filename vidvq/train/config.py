"""Settings of `vidvq train`. The DeepSpeed configuration is derived from them; there is no second file."""

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
        lr: learning rate at the end of the warm-up.
        final_lr: learning rate at the last step, as a fraction of ``lr``.
        warmup_steps: length of the warm-up (steps).
        clip_norm: global norm that gradients are clipped to.
        fused: torch's fused kernel of AdamW.
        offload: keep the optimizer's state and run its step on the CPU, with DeepSpeed's compiled Adam; needs
            ZeRO 1 to 3.
        betas: decay of the averages of the gradient and of its square.
        eps: term added to the denominator of the update.
        weight_decay: decoupled weight decay, per unit of learning rate.
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
        net: backbone architecture.
        backbone: torchvision's ImageNet weights of ``net``, a .pth file; for ``lpips`` alone.
        frames: frames compared per clip, sampled at each step; None compares all.
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
        adversarial_kind: loss of generator and discriminator.
        adaptive: scale ``adversarial`` at each step by the norm of the other losses' gradient at the reconstruction
            over that of the adversarial one's, up to ``adaptive_limit``.
        adversarial_start: first step with the adversarial loss; the discriminator starts to train
            ``discriminator_warmup`` steps earlier.
        r1: weight of the gradient penalty on real video.
        lecam: weight of the LeCAM regulariser on the discriminator.
        perceptual_net: network of the perceptual loss.
        adaptive_limit: upper limit of the factor of ``adaptive``.
        discriminator_warmup: steps that the discriminator trains before ``adversarial_start``.
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
    """The masks of ``loss.masked`` (He et al. 2022; for videos Tong et al. 2022).

    Attributes:
        clips: fraction of a micro-batch that is encoded a second time, with blocks hidden.
        blocks: fraction of the blocks that are hidden.
        size: time, height and width of a block (latents).
    """

    __pydantic_config__: ClassVar = FORBID

    clips: Annotated[float, Field(gt=0, le=1)] = 0.25
    blocks: Annotated[float, Field(gt=0, lt=1)] = 0.5
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 2, 2)


@dataclass(frozen=True)
class GuardConfig:
    """Bad batches: when to skip one, and when to roll back.

    Attributes:
        spike: a batch is skipped, without a trace, where its reconstruction loss is not finite or exceeds this multiple
            of the median of recent losses.
        patience: batches skipped in a row before the run rolls back to its last checkpoint and continues with the data
            after them.
        rollbacks: rollbacks before the run gives up.
    """

    __pydantic_config__: ClassVar = FORBID

    spike: Annotated[float, Field(gt=1)] = 10.0
    patience: Annotated[int, Field(ge=1)] = 3
    rollbacks: Annotated[int, Field(ge=0)] = 3


@dataclass(frozen=True)
class EvaluationConfig:
    """Scores on held-out clips during training.

    Attributes:
        clips: a directory written by ``vidvq shard``; None disables evaluation.
        every: interval (steps).
        num_clips: number of clips, from the first on.
        metric: score that selects the best checkpoint.
        shown: clips that TensorBoard shows with their reconstructions.
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
        data: the training clips.
        out: the run's directory: checkpoints, ``metrics.jsonl``, TensorBoard events.
        seed: seed of the initial weights, the order of the data, and all randomness of a step.
        steps: optimizer steps of the generator.
        model: architecture of the tokenizer.
        discriminator: architecture of the discriminator.
        start_from: a checkpoint whose weights to start from.
        train_only: ``decoder`` freezes the encoder and codebooks of ``start_from``, so that its tokens stay valid.
        generator, discriminator_optimizer: the optimizers.
        loss: terms of the loss and their weights.
        mask: masks of ``loss.masked``.
        guard: when to skip a batch, and when to roll back.
        evaluation: scores on held-out clips during training.
        ema_decay: decay of the averaged weights, which are saved; approached over the first steps.
        log_every, checkpoint_every: intervals (steps).
        usage_every: window over which the use of codes is counted, over all processes (steps).
        keep_checkpoints: number of newest checkpoints kept; the best is kept as well.
        zero_stage: DeepSpeed's ZeRO stage of both engines.
        precision: weights are fp32; bf16 and fp16 are autocast. Quantization is always fp32.
        checkpoint_activations: recompute activations of residual blocks in the backward pass, to save memory.
        lost_after_s: time after which a process that the others wait for counts as lost, and the job ends (seconds);
            more than the slowest save takes.
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
        self._check_shapes()
        if "://" in self.out:
            raise UsageError(f"out={self.out} must be a folder of a file system that all machines share")
        if self.zero_stage == 0 and (self.generator.offload or self.discriminator_optimizer.offload):
            raise UsageError("zero_stage=0 keeps the optimizer on the device; offload=true needs zero_stage 1 to 3")
        if self.precision == "fp16" and self.zero_stage:
            # Under ZeRO, DeepSpeed (0.19) does not report an overflow to its loss scaler, whose first scale is too
            # high: every step is skipped. It also clips gradients before they are unscaled.
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
        """Whether a discriminator is trained."""
        return is_used(self.loss.adversarial) and self.loss.adversarial_start < self.steps

    @property
    def discriminator_start(self) -> int:
        """The first step in which the discriminator trains."""
        return max(self.loss.adversarial_start - self.loss.discriminator_warmup, 0)

    def _check_shapes(self) -> None:
        """Refuse batches that are not whole groups and whole latents, before any work starts."""
        r, s = self.model.temporal_factor, self.model.spatial_factor
        names = [f"data.buckets.{index}." for index in range(len(self.data.buckets))] or ["data."]
        for name, shape in zip(names, self.data.shapes, strict=True):
            if (shape.num_frames - 1) % r:
                below = shape.num_frames - (shape.num_frames - 1) % r
                raise UsageError(
                    f"{name}num_frames={shape.num_frames} must be 1 + a multiple of model.temporal_factor={r}; "
                    f"nearest {below} or {below + r}"
                )
            if shape.height % s or shape.width % s:
                sides = f"height={shape.height} width={shape.width}"
                size = f"{name}{sides}" if self.data.buckets else f"data.crop={self.data.crop}"
                raise UsageError(f"{size} must be a multiple of {s}, the pixels per latent of this model")
