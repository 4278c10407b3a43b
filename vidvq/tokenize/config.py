"""What `vidvq tokenize` can be told."""

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
    """Which samples are decoded back and scored, and when that stops the job.

    Attributes:
        share: of the samples, chosen by their keys; the score goes into the sample's JSON.
        perceptual: score ST-LPIPS too, on four frames of each sample (it costs as much as encoding dozens).
        min_psnr: in dB; a shard whose scored samples have a lower mean is not written, and the job stops.
        max_drop: in dB; the job stops where the mean PSNR of the last 64 scored samples is lower than that of the job's
            first 64 by more. Both means are of whole shards, in the order they came in, and are known to about half a
            decibel.
        min_usage: the job stops where the perplexity of a codebook is less than this share of its size, over the last
            100 tokens for each of its codes.
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
    """`vidvq tokenize`. What is said of raw video here is said of clips when they are made, by `vidvq shard`.

    Attributes:
        video: of raw video: which frames are used, and in what size.
        gop_frames: of raw video: a fresh start of the stream each so many frames; None for one unbroken stream.
        items_per_shard: of raw video: planned samples (one per fresh start) in one token shard.
        lists: of raw video: what the columns of a list mean.
        limits: caps on any one video.
        batch: streams that a worker steps together, each decoded by a process of its own; None for 8 on a GPU, and 1
            on CPUs. The plan keeps it: kernels of another size round otherwise.
        pack: codes bit-packed and compressed, as :mod:`vidvq.formats.token_bits` does, instead of as npy.
        quality: of the tokens, while they are made.
        max_failed: the share of items that may fail before the exit code says so.
        runtime: where it runs; changes nothing in the output.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    video: VideoPolicy = field(default_factory=VideoPolicy)
    gop_frames: Annotated[int, Field(ge=1)] | None = 33
    items_per_shard: Annotated[int, Field(ge=1)] = 256
    lists: ListPolicy = field(default_factory=ListPolicy)
    limits: Limits = field(default_factory=Limits)
    batch: Annotated[int, Field(ge=1, le=256)] | None = None
    pack: bool = False
    quality: QualityPolicy = field(default_factory=QualityPolicy)
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
