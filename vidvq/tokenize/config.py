"""What `vidvq tokenize` can be told."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from vidvq.corpus.frames import VideoPolicy
from vidvq.corpus.lists import ListPolicy
from vidvq.runtime import RuntimeConfig
from vidvq.video.probe import Limits


@dataclass(frozen=True)
class QualityPolicy:
    """Which samples are decoded back and scored, and when that stops the job.

    Attributes:
        share: of the samples, chosen by their keys; the score goes into the sample's JSON.
        min_psnr: in dB; a shard whose scored samples have a lower mean is not written, and the job stops.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_psnr: float | None = None

    def __post_init__(self) -> None:
        if self.min_psnr is not None and not self.share:
            raise ValueError(f"min_psnr={self.min_psnr:g} needs share above 0")


@dataclass(frozen=True)
class TokenizeConfig:
    """`vidvq tokenize`. What is said of raw video here is said of clips when they are made, by `vidvq shard`.

    Attributes:
        video: of raw video: which frames are used, and in what size.
        gop_frames: of raw video: a fresh start of the stream each so many frames; None for one unbroken stream.
        items_per_shard: of raw video: planned samples (one per fresh start) in one token shard.
        lists: of raw video: what the columns of a list mean.
        limits: caps on any one video.
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
    pack: bool = False
    quality: QualityPolicy = field(default_factory=QualityPolicy)
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
