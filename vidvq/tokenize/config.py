"""Settings of `vidvq tokenize`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from vidvq.corpus.lists import ListPolicy
from vidvq.errors import UsageError
from vidvq.formats.execution import ANY_GPU, MAX_PIXELS, Execution, Precision, resolve_precision
from vidvq.runtime import RuntimeConfig
from vidvq.video.limits import Limits
from vidvq.video.policy import VideoPolicy

# Streams of a worker on a GPU, by default; more gain little, and each has a decoding process.
GPU_STREAMS = 8
# Longer samples are encoded in several steps.
_MAX_GROUPS = 17


@dataclass(frozen=True)
class QualityPolicy:
    """Which samples are decoded and scored during the job, and the thresholds that stop it.

    Attributes:
        share: fraction of the samples that is decoded and scored, chosen by key; the score is written to the sample's
            JSON as ``quality``.
        perceptual: compute ST-LPIPS as well, on four frames of each scored sample. It costs as much as encoding dozens
            of samples.
        min_psnr: minimum mean PSNR of the scored samples of a shard (dB); the job stops before it writes a worse
            shard.
        max_drop: maximum drop in mean PSNR from the first 64 scored samples of the job to the last 64 (dB); the job
            stops when it is exceeded. Both means cover whole shards, in order of completion, and are accurate to about
            0.5 dB.
        min_usage: minimum perplexity of a codebook as a fraction of its size, over the last 100 tokens per code; the
            job stops below it.
    """

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    perceptual: bool = False
    min_psnr: float | None = None
    max_drop: Annotated[float, Field(gt=0)] | None = None
    min_usage: Annotated[float, Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        for name in ("perceptual", "min_psnr", "max_drop"):
            if not self.share and (value := getattr(self, name)) not in (None, False):
                raise UsageError(f"{name}={value} needs share above 0, which says how many samples are scored")


@dataclass(frozen=True)
class TokenizeConfig:
    """Settings of `vidvq tokenize`.

    ``video``, ``gop_frames``, ``items_per_shard``, ``lists`` and ``decoder`` apply to raw video. For clip shards,
    `vidvq shard` has made these decisions already.

    Attributes:
        video: sampling and size of the frames of raw video.
        gop_frames: interval at which the stream of a raw video restarts (frames), 1 + a multiple of the tokenizer's
            temporal factor; None makes one unbroken stream of each video.
        items_per_shard: planned samples per token shard of raw video.
        lists: the columns of input lists.
        limits: caps on a single video.
        decoder: decoder of raw video: ``pyav``; or ``nvdec``, the decoder of the worker's GPU, for H.264, HEVC and VP9
            that it supports, and PyAV for the rest. Recorded in the plan.
        where: clips to tokenize, as an expression over their columns; None for all. The others are counted as
            ``filtered(not_selected)``. Raw video has ``lists.where``.
        batch: streams that a worker encodes together, each decoded by its own process; None means 8 on a GPU and 1 on
            CPUs. Recorded in the plan, because kernels round differently for another batch size.
        groups: groups of each stream that are encoded together; None means all groups of a sample on a GPU (at most 17)
            and 1 on CPUs. Recorded in the plan, as ``batch`` is.
        device: ``cpu`` or ``cuda``; ``auto`` means the GPUs of the cluster, or of this machine, if there are any.
        precision: type of the networks on a GPU: ``bf16``, ``tf32`` or ``fp32``; None means ``bf16`` there, and
            ``fp32`` on CPUs. Quantization is always fp32.
        kernels: kernels of the encoder on a GPU: those of ``torch``, or ``triton``, whose rounding depends neither on
            ``batch`` and ``groups`` nor on the frame size. Recorded in the plan.
        mixed_gpus: whether GPUs of different kinds may work on the job; rounding, and so tokens, then depend on the
            kind. Recorded in the plan.
        pack: write codes bit-packed and compressed (``KEY.tokens.bits.zst``) instead of as npy; lossless.
        quality: scoring during the job, and the thresholds that stop it.
        max_failed: fraction of items that may fail before the exit code is 1.
        runtime: where the job runs; does not change the output, except ``compile`` on GPUs.
    """

    video: VideoPolicy = field(default_factory=VideoPolicy)
    gop_frames: Annotated[int, Field(ge=1)] | None = 33
    items_per_shard: Annotated[int, Field(ge=1)] = 256
    lists: ListPolicy = field(default_factory=ListPolicy)
    limits: Limits = field(default_factory=Limits)
    decoder: Literal["pyav", "nvdec"] = "pyav"
    where: str | None = None
    batch: Annotated[int, Field(ge=1, le=256)] | None = None
    groups: Annotated[int, Field(ge=1, le=256)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | None = None
    kernels: Literal["torch", "triton"] = "torch"
    mixed_gpus: bool = False
    pack: bool = False
    quality: QualityPolicy = field(default_factory=QualityPolicy)
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def resolve_execution(config: TokenizeConfig, device: str, sample_groups: int) -> Execution:
    """Decide how samples are encoded.

    Args:
        device: ``cpu`` or ``cuda``.
        sample_groups: groups of most samples; used on GPUs.

    Raises:
        UsageError: the precision or the kernels are not available on the device.
    """
    on_gpu = device == "cuda"
    if not on_gpu and config.kernels == "triton":
        raise UsageError("kernels=triton needs a GPU; on CPUs set kernels=torch")
    return Execution(
        device=device,
        precision=resolve_precision(config.precision, device),
        compiled=on_gpu and config.runtime.compile == "auto",
        streams=config.batch or (GPU_STREAMS if on_gpu else 1),
        groups=config.groups or (min(sample_groups, _MAX_GROUPS) if on_gpu else 1),
        max_pixels=MAX_PIXELS,
        gpu=ANY_GPU if on_gpu and config.mixed_gpus else None,
        kernels="triton" if config.kernels == "triton" else None,
    )
