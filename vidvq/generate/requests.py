"""Settings of the commands that generate: what to make, and how. Imports no torch."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from vidvq.corpus.lists import ListPolicy
from vidvq.runtime import RuntimeConfig
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import Limits

_FORBID = {"extra": "forbid"}
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class SamplingConfig:
    """How codes are drawn.

    Attributes:
        steps: parallel decoding steps, for the grid (``masked``) or for each latent frame (``next``) (1 or more).
        temperature: 1 samples from the model's distribution, lower values sharpen it, 0 takes the most probable code.
        top_p: share of the probability that codes are drawn from, the most probable ones first (above 0, up to 1).
        guidance: classifier-free guidance scale of the conditions (Ho and Salimans 2022); 1 is off.
        order: order of revealing codes: ``halton``, ``random``, or ``confidence``.
    """

    __pydantic_config__: ClassVar = _FORBID

    steps: Annotated[int, Field(ge=1)] = 12
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    guidance: Annotated[float, Field(ge=0)] = 1.0
    order: Literal["halton", "random", "confidence"] = "halton"


def _in_process() -> RuntimeConfig:
    # Ray takes seconds to start.
    return RuntimeConfig(workers=0)


@dataclass(frozen=True, kw_only=True)
class RequestConfig:
    """Settings of every command that generates.

    Attributes:
        seed: seed of the samples; with the key of a prompt it decides its sample, whatever the workers.
        sampling: how codes are drawn.
        format: what the tokens are decoded to, into ``OUT/video``: ``mp4``, ``gif``, ``png`` or ``npy``; ``none``
            writes tokens only.
        deadline_s: time limit of decoding one clip, and of generating from it (seconds).
        max_failed: share of the samples that may fail before the exit code is 1 (0 to 1).
        runtime: where the job runs; does not change the output. The default runs in this process, because Ray takes
            seconds to start.
    """

    __pydantic_config__: ClassVar = _FORBID

    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    format: Literal["mp4", "gif", "png", "npy", "none"] = "mp4"
    deadline_s: Annotated[float, Field(gt=0)] = 600.0
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    runtime: RuntimeConfig = field(default_factory=_in_process)

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types."""
        return {"seed": self.seed, "sampling": vars(self.sampling)}


@dataclass(frozen=True, kw_only=True)
class SampleConfig(RequestConfig):
    """Settings of `vidvq generate sample`.

    Attributes:
        n: number of samples.
        label: class of the samples (on the command line also ``class=``); None for none.
        frames: frames per sample; None for as many as most training samples have.
        height: height of a frame (pixels); None for that of most training samples.
        width: width of a frame (pixels); None for that of most training samples.
        fps: frame rate (frames per second); None for the median of the training samples.
        items_per_shard: samples per token shard.
    """

    n: Count = 16
    label: str | int | float | None = None
    frames: Count | None = None
    height: Count | None = None
    width: Count | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    items_per_shard: Count = 256

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types."""
        names = ("n", "label", "frames", "height", "width", "fps", "items_per_shard")
        return super().identity() | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class InputConfig(RequestConfig):
    """Settings of the commands that take clips or videos; ``video``, ``lists``, ``limits`` are for videos.

    Attributes:
        video: sampling and size of the frames of videos; None for the size of most training samples, cropped.
        lists: the columns of input lists.
        limits: caps on a single video.
        items_per_shard: videos per token shard.
    """

    video: VideoPolicy | None = None
    lists: ListPolicy = field(default_factory=ListPolicy)
    limits: Limits = field(default_factory=Limits)
    items_per_shard: Count = 256


@dataclass(frozen=True, kw_only=True)
class PredictConfig(InputConfig):
    """Settings of `vidvq generate predict`.

    Attributes:
        given: frames that are given, from the start of each clip (1 + a multiple of the temporal factor).
        frames: frames of the result, with the given ones; None for as many as the clip has, or for videos as many as
            the longest training samples have.
        columns: directory of the clip shards that the tokens were made from, for generators with conditions from
            columns; None generates without conditions.
    """

    given: Count = 5
    frames: Count | None = None
    columns: str | None = None

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types."""
        return super().identity() | {"given": self.given, "frames": self.frames}


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(InputConfig):
    """Settings of `vidvq generate interpolate`.

    Attributes:
        every: keep the first and the last frame and each frame with a multiple of this index; None keeps the first and
            the last frame alone.
    """

    every: Annotated[int, Field(ge=2)] | None = None

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types."""
        return super().identity() | {"every": self.every}


@dataclass(frozen=True, kw_only=True)
class FillConfig(InputConfig):
    """Settings of `vidvq generate fill`.

    Attributes:
        box: what to generate in every frame: left, top, width and height (pixels); required.
        outside: generate what lies outside the box instead.
    """

    box: tuple[int, int, int, int] | None = None
    outside: bool = False

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on, as JSON types."""
        return super().identity() | {"box": list(self.box or ()), "outside": self.outside}
