"""What `vidvq shard` can be told."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from vidvq.runtime import RuntimeConfig
from vidvq.video.probe import Limits

FORBID = {"extra": "forbid"}


@dataclass(frozen=True)
class ClipPolicy:
    """How a video becomes clips; decides, with the sources, every byte of the shards.

    Attributes:
        num_frames: in a full clip.
        min_frames: a video's last clip may be shorter, down to this; what is shorter still is left out.
        stride: frames from the start of one clip to the start of the next; None for ``num_frames``.
        fps: frames per second to sample at, by time; None keeps every frame of the source.
        short_side: pixels to scale the short side to; None keeps the source's size.
        multiple: height and width are cropped, about the centre, to a multiple of this.
        crf: x264's quality, 0 (lossless) to 51 (worst).
    """

    __pydantic_config__: ClassVar = FORBID

    num_frames: Annotated[int, Field(ge=1)] = 33
    min_frames: Annotated[int, Field(ge=1)] = 9
    stride: Annotated[int, Field(ge=1)] | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    short_side: Annotated[int, Field(ge=8)] | None = 256
    multiple: Annotated[int, Field(ge=1)] = 2
    crf: Annotated[int, Field(ge=0, le=51)] = 17

    def __post_init__(self) -> None:
        if self.min_frames > self.num_frames:
            raise ValueError(f"min_frames={self.min_frames} must be at most num_frames={self.num_frames}")


@dataclass(frozen=True)
class ShardConfig:
    """`vidvq shard`.

    Attributes:
        clip: how a video becomes clips.
        clips_per_shard: planned clips in one tar.
        max_failed: the share of inputs that may fail before the exit code says so.
        limits: caps on any one video.
        runtime: where it runs; changes nothing in the output.
    """

    __pydantic_config__: ClassVar = FORBID

    clip: ClipPolicy = field(default_factory=ClipPolicy)
    clips_per_shard: Annotated[int, Field(ge=1)] = 256
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    limits: Limits = field(default_factory=Limits)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
