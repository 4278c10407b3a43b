"""Settings of `vidvq tokenize`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from vidvq.corpus.lists import ListPolicy
from vidvq.errors import UsageError
from vidvq.runtime import RuntimeConfig
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import Limits


@dataclass(frozen=True)
class QualityPolicy:
    """Which samples are decoded and scored during the job, and the thresholds that stop it.

    Attributes:
        share: fraction of the samples that is decoded and scored, chosen by key; the score is written to the sample's
            JSON as ``quality``.
        perceptual: compute ST-LPIPS as well, on four frames of each scored sample. It costs as much as encoding dozens
            of samples.
        min_psnr: minimum mean PSNR of the scored samples of a shard (dB); the job stops before it writes a shard
            below it.
        max_drop: maximum drop in mean PSNR from the first 64 scored samples of the job to the last 64 (dB); the job
            stops when it is exceeded. Both means cover whole shards, in order of completion, and are accurate to about
            0.5 dB.
        min_usage: minimum perplexity of a codebook as a fraction of its size, over the last 100 tokens per code; the
            job stops below it.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

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

    ``video``, ``gop_frames``, ``items_per_shard`` and ``lists`` apply to raw video. For clip shards, `vidvq shard` has
    made these decisions already.

    Attributes:
        video: sampling and size of the frames of raw video.
        gop_frames: interval at which the stream of a raw video restarts (frames), 1 + a multiple of the tokenizer's
            temporal factor; None makes one unbroken stream of each video.
        items_per_shard: planned samples per token shard of raw video.
        lists: the columns of input lists.
        limits: caps on a single video.
        where: clips to tokenize, as an expression over their columns; None for all. The others are counted as
            ``filtered(not_selected)``. Raw video has ``lists.where``.
        batch: streams that a worker encodes together, each decoded by its own process; None means 8 on a GPU and 1 on
            CPUs. Recorded in the plan, because kernels round differently for another batch size.
        pack: write codes bit-packed and compressed (``KEY.tokens.bits.zst``) instead of as npy; lossless.
        quality: scoring during the job, and the thresholds that stop it.
        max_failed: fraction of items that may fail before the exit code is 1.
        runtime: where the job runs; does not change the output.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    video: VideoPolicy = field(default_factory=VideoPolicy)
    gop_frames: Annotated[int, Field(ge=1)] | None = 33
    items_per_shard: Annotated[int, Field(ge=1)] = 256
    lists: ListPolicy = field(default_factory=ListPolicy)
    limits: Limits = field(default_factory=Limits)
    where: str | None = None
    batch: Annotated[int, Field(ge=1, le=256)] | None = None
    pack: bool = False
    quality: QualityPolicy = field(default_factory=QualityPolicy)
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
