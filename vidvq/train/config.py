"""Settings of `vidvq train`. The DeepSpeed configuration is derived from them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from vidvq.data import DataConfig
from vidvq.errors import UsageError
from vidvq.formats.plugin_reference import TokenizerName
from vidvq.model import DiscriminatorConfig, TokenizerConfig
from vidvq.settings import PathName
from vidvq.training.config import Decay, GuardConfig, NonNegative, OptimizerConfig, Seed, Steps, check_zero_stage
from vidvq.training.schedule import Weight, is_used


@dataclass(frozen=True)
class PerceptualConfig:
    """Network of the perceptual loss.

    Attributes:
        kind: metric: ``st_lpips`` (weights from the package ``stlpips_pytorch``) or ``lpips`` (linear weights from the
            package ``lpips``, network weights from ``backbone``).
        net: architecture of the network: ``alex`` or ``vgg`` (``lpips`` only).
        backbone: path of torchvision's ImageNet weights of ``net`` (.pth); required for ``lpips``, None otherwise.
        frames: frames compared per clip, sampled at each step (1 or more); None compares all frames.
    """

    kind: Literal["st_lpips", "lpips"] = "st_lpips"
    net: Literal["alex", "vgg"] = "alex"
    backbone: PathName | None = None
    frames: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if (self.kind == "lpips") != (self.backbone is not None):
            raise UsageError(
                f"kind={self.kind} with backbone={self.backbone}: kind=lpips needs a backbone, kind=st_lpips takes none"
            )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms. A weight is a number or a ramp ``{begin, end, last}``; 0 disables a term.

    Attributes:
        l1: weight of the L1 distance of pixels in [-1, 1].
        l2: weight of the mean squared error of pixels in [-1, 1].
        wavelet: weight of the L1 distance of the detail coefficients of a two-level 2D Haar transform.
        perceptual: weight of the perceptual distance of frames, measured by ``perceptual_net``.
        gram: weight of the squared difference of the Gram matrices of the features of ``perceptual_net`` (Gatys et al.
            2016, eq. 4, mean over its layers), from the forward pass of ``perceptual``.
        perceptual_net: network of the perceptual and Gram losses.
        commitment: weight of the loss of the quantizer: commitment loss, plus entropy loss for lookup-free codebooks.
        masked: weight of the L1 distance on clips that the encoder sees partially masked, as set by ``mask``.
        adversarial: weight of the adversarial loss of the generator; 0 trains a VQ-VAE.
        adversarial_kind: loss of the generator and the discriminator: ``hinge`` or ``non_saturating``.
        adaptive: scale ``adversarial`` at each step by the ratio of the gradient norms of the other losses and the
            adversarial loss, taken at the reconstruction.
        adaptive_limit: maximum of the ratio that ``adaptive`` applies (0 or more).
        adversarial_start: first step with the adversarial loss (steps).
        discriminator_warmup: number of steps that the discriminator trains before ``adversarial_start`` (steps).
        r1: weight of the R1 gradient penalty on real video.
        lecam: weight of the LeCAM regularizer of the discriminator.
    """

    l1: Weight = 1.0
    l2: Weight = 0.0
    wavelet: Weight = 0.0
    perceptual: Weight = 0.0
    gram: Weight = 0.0
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
    """Masking for ``loss.masked`` (He et al. 2022; for video, Tong et al. 2022).

    Attributes:
        clips: fraction of the clips of a micro-batch that are encoded a second time with masked blocks (above 0, up to
            1).
        blocks: fraction of the blocks of a clip that are masked (between 0 and 1).
        size: duration, height and width of a block (latents).
    """

    clips: Annotated[float, Field(gt=0, le=1)] = 0.25
    blocks: Annotated[float, Field(gt=0, lt=1)] = 0.5
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 2, 2)

    def count(self, clips: int) -> int:
        """Return the number of masked copies of a micro-batch of ``clips`` clips."""
        return max(round(self.clips * clips), 1)


@dataclass(frozen=True)
class DegradeConfig:
    """Degradation of the clips that the encoder sees; the target stays clean, so the decoder learns to restore.

    The strengths are drawn per clip. Held-out clips are degraded too, each the same way in every evaluation.

    Attributes:
        clips: fraction of the clips that are degraded (above 0, up to 1).
        blur: largest standard deviation of a Gaussian blur (pixels, 0 to 16); 0 for none.
        noise: largest standard deviation of white Gaussian noise (levels of 255, 0 to 255); 0 for none.
        jpeg: lowest quality of JPEG compression (1 to 100); null for none.
    """

    clips: Annotated[float, Field(gt=0, le=1)] = 1.0
    blur: Annotated[float, Field(ge=0, le=16)] = 0.0
    noise: Annotated[float, Field(ge=0, le=255)] = 0.0
    jpeg: Annotated[int, Field(ge=1, le=100)] | None = None

    @property
    def is_used(self) -> bool:
        """Whether anything is degraded."""
        return bool(self.blur or self.noise or self.jpeg)


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on held-out clips during training.

    Attributes:
        clips: directory or URL of the held-out clips, written by ``vidvq shard``; None disables evaluation.
        every: evaluation interval (steps).
        num_clips: number of clips to score, taken from the start of the directory (1 or more).
        metric: score that selects the best checkpoint, of those at a step with an evaluation: ``psnr``, ``ssim`` or
            ``perceptual``.
        shown: number of clips written to TensorBoard with their reconstructions (0 or more).
    """

    clips: PathName | None = None
    every: Steps = 1000
    num_clips: Annotated[int, Field(ge=1)] = 32
    metric: Literal["psnr", "ssim", "perceptual"] = "psnr"
    shown: Annotated[int, Field(ge=0)] = 4


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `vidvq train`.

    Attributes:
        data: training clips and batching.
        out: run directory, on a file system that all machines share: checkpoints, ``metrics.jsonl`` and TensorBoard
            events.
        seed: seed of the initial weights, the data order and the randomness of each step.
        steps: number of optimizer steps of the generator (steps).
        model: architecture of the tokenizer.
        discriminator: architecture of the discriminator.
        start_from: checkpoint or run that provides the initial weights, or ``bundled``; None starts from random
            weights.
        train_only: networks to train: ``all``, or ``decoder`` to freeze the encoder and codebooks of ``start_from``,
            which keeps its tokens valid.
        new_quantizer: whether ``start_from`` provides only the networks. Codebooks are then drawn from the seed, and
            ``model.quantizer`` may differ; latent channels that the checkpoint lacks start without effect.
        generator: optimizer of the generator, that is the tokenizer.
        discriminator_optimizer: optimizer of the discriminator.
        loss: weights of the loss terms.
        mask: masking for ``loss.masked``.
        degrade: degradation of the encoder's input, for a decoder that restores.
        guard: handling of bad batches.
        evaluation: evaluation on held-out clips.
        ema_decay: decay of the averaged weights, which checkpoints contain (from 0, below 1); smaller during the first
            steps.
        log_every: interval of metrics (steps).
        usage_every: window of codebook usage statistics, over all ranks (steps).
        checkpoint_every: interval of checkpoints (steps).
        keep_checkpoints: number of newest checkpoints to keep (1 or more); the best one is kept in addition.
        zero_stage: DeepSpeed ZeRO stage of the generator and the discriminator (0 to 3).
        precision: autocast type: ``fp32`` (on GPUs without TF32), ``bf16`` or ``fp16``. Weights and quantization are
            always fp32. With ``bf16`` on a GPU, the network of the perceptual loss runs in bf16 as well.
        compile: compile the forward and backward passes of the tokenizer, after the warm-up of its codebooks, of the
            discriminator, and of the losses that compare pixels; not with ``zero_stage=3``.
        checkpoint_activations: recompute the activations of residual blocks in the backward pass to save memory.
        lost_after_s: time limit of a collective operation (seconds), longer than the slowest save. A rank that does not
            respond in time counts as lost, and the job ends.
    """

    data: DataConfig
    out: PathName = "runs/train"
    seed: Seed = 0
    steps: Steps = 100_000
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    start_from: TokenizerName | None = None
    train_only: Literal["all", "decoder"] = "all"
    new_quantizer: bool = False
    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    ema_decay: Decay = 0.999
    log_every: Steps = 10
    usage_every: Steps = 100
    checkpoint_every: Steps = 5000
    keep_checkpoints: Steps = 3
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    checkpoint_activations: bool = False
    lost_after_s: Annotated[float, Field(gt=0, le=1e6)] = 600.0

    def __post_init__(self) -> None:
        self._check_shapes()
        if "://" in self.out:
            raise UsageError(f"out={self.out} must be a directory on a file system that all machines share")
        check_zero_stage(self, self.generator, self.discriminator_optimizer)
        if self.compile and self.zero_stage == 3:
            raise UsageError("compile=true needs zero_stage 0 to 2, but zero_stage=3, which gathers weights in between")
        if self.train_only == "decoder" and self.start_from is None:
            raise UsageError("train_only=decoder needs a checkpoint that provides the encoder; set start_from=")
        if self.new_quantizer and (self.start_from is None or self.train_only == "decoder"):
            raise UsageError(
                "new_quantizer=true replaces the codebooks of a checkpoint; set start_from= and train_only=all"
            )
        if self.train_only == "decoder" and is_used(self.loss.masked):
            raise UsageError("train_only=decoder freezes the encoder, which loss.masked trains; set loss.masked=0")
        if self.evaluation.metric == "perceptual" and not is_used(self.loss.perceptual):
            raise UsageError(
                "evaluation.metric=perceptual needs the network of loss.perceptual; set loss.perceptual above 0"
            )

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained."""
        return is_used(self.loss.adversarial) and self.loss.adversarial_start < self.steps

    @property
    def discriminator_start(self) -> int:
        """First step in which the discriminator is trained."""
        return max(self.loss.adversarial_start - self.loss.discriminator_warmup, 0)

    def _check_shapes(self) -> None:
        """Reject batch shapes that are not complete groups and latents, or too small for the losses."""
        r, s = self.model.temporal_factor, self.model.spatial_factor * self.model.decoder.upscale
        multiple, smallest = max(s, 4 if is_used(self.loss.wavelet) else 1), 2 << self.discriminator.layers
        reason = "the pixels per latent of this model" if multiple == s else "for loss.wavelet"
        names = [f"data.buckets.{index}." for index in range(len(self.data.buckets))] or ["data."]
        for name, shape in zip(names, self.data.shapes, strict=True):
            if (shape.num_frames - 1) % r:
                below = shape.num_frames - (shape.num_frames - 1) % r
                raise UsageError(
                    f"{name}num_frames={shape.num_frames} must be 1 + a multiple of model.temporal_factor={r}; "
                    f"nearest {below} or {below + r}"
                )
            sides = f"height={shape.height} width={shape.width}"
            size = f"{name}{sides}" if self.data.buckets else f"data.crop={self.data.crop}"
            if shape.height % multiple or shape.width % multiple:
                raise UsageError(f"{size} must be a multiple of {multiple}, {reason}")
            if self.adversarial and min(shape.height, shape.width) < smallest:
                raise UsageError(
                    f"{size} must be at least {smallest}, as discriminator.layers={self.discriminator.layers} halve it"
                )
