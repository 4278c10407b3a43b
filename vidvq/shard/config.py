"""What `vidvq shard` can be told."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vidvq.corpus.lists import ListPolicy
from vidvq.errors import UsageError
from vidvq.runtime import RuntimeConfig
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import DecoderName, Limits

FORBID = {"extra": "forbid"}


@dataclass(frozen=True)
class ClipPolicy(VideoPolicy):
    """How a video becomes clips; decides, with the sources, every byte of the shards.

    Attributes:
        num_frames: in a full clip.
        min_frames: a video's last clip may be shorter, down to this; what is shorter still is left out.
        stride: frames from the start of one clip to the start of the next; None for ``num_frames``.
        fps: frames per second to sample at, by time; None keeps every frame of the source.
        short_side: pixels to scale the short side to; None keeps the source's size.
        multiple: height and width come out as a multiple of this.
        size: ``[height, width]`` for every clip, in the place of ``short_side``.
        fit: where the shape is not the source's: ``crop`` about the centre, ``pad`` with black, or ``stretch``.
        decoder: ``pyav``; or ``decord`` where it is right, see :func:`vidvq.video.decode.decoders_for`.
        encoding: ``h264`` in mp4, the whole clip one group of pictures; ``ffv1`` in mkv, without loss; ``frames``, the
            pixels as npy; ``copy`` in mkv, the source's own packets where the cut falls so that they decode alone.
        crf: of ``h264``: x264's quality, 0 (lossless) to 51 (worst).
    """

    __pydantic_config__: ClassVar = FORBID

    num_frames: Annotated[int, Field(ge=1)] = 33
    min_frames: Annotated[int, Field(ge=1)] = 9
    stride: Annotated[int, Field(ge=1)] | None = None
    decoder: DecoderName = "pyav"
    encoding: Literal["h264", "ffv1", "frames", "copy"] = "h264"
    crf: Annotated[int, Field(ge=0, le=51)] = 17

    def __post_init__(self) -> None:
        if self.min_frames > self.num_frames:
            raise UsageError(f"min_frames={self.min_frames} must be at most num_frames={self.num_frames}")
        if self.encoding == "copy" and (self.fps or self.short_side or self.size):
            raise UsageError("encoding='copy' changes no picture; it needs fps=null short_side=null size=null")
        if self.size and any(side % self.multiple for side in self.size):
            raise UsageError(f"size={list(self.size)} must be of multiple={self.multiple}")


@dataclass(frozen=True)
class CutPolicy:
    """Where clips may begin and end, beside the length and stride that :class:`ClipPolicy` sets.

    Attributes:
        kind: ``windows`` cuts through the whole video; ``shots`` finds its cuts first, which decodes it once more, and
            no clip crosses one.
        threshold: for ``shots``: how many times the change between two frames must be that of the frames around to be
            a cut (PySceneDetect's adaptive detector).
        min_shot_s: for ``shots``: a cut that comes sooner after the one before is not one; seconds.
    """

    __pydantic_config__: ClassVar = FORBID

    kind: Literal["windows", "shots"] = "windows"
    threshold: Annotated[float, Field(gt=0)] = 3.0
    min_shot_s: Annotated[float, Field(ge=0)] = 0.5


@dataclass(frozen=True)
class FilterPolicy:
    """What is not worth a clip; each item left out is counted under its reason.

    Attributes:
        duplicates: ``duplicate``: leave out a file with the same bytes as one before it in the inputs.
        min_side: ``too_small``: the least pixels of a source's short side.
        min_luma: ``too_dark``: the least mean brightness of a clip, 0 to 1.
        min_motion: ``static``: the least mean change of a pixel from frame to frame, 0 to 1.
    """

    __pydantic_config__: ClassVar = FORBID

    duplicates: bool = True
    min_side: Annotated[int, Field(ge=1)] = 1
    min_luma: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_motion: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True)
class ShardConfig:
    """`vidvq shard`.

    Attributes:
        clip: how a video becomes clips.
        cut: where a clip may begin and end.
        filters: what is not worth a clip.
        lists: what the columns of a list mean.
        clips_per_shard: planned clips in one tar.
        max_failed: the share of inputs that may fail before the exit code says so.
        limits: caps on any one video.
        runtime: where it runs; changes nothing in the output.
    """

    __pydantic_config__: ClassVar = FORBID

    clip: ClipPolicy = field(default_factory=ClipPolicy)
    cut: CutPolicy = field(default_factory=CutPolicy)
    filters: FilterPolicy = field(default_factory=FilterPolicy)
    lists: ListPolicy = field(default_factory=ListPolicy)
    clips_per_shard: Annotated[int, Field(ge=1)] = 256
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    limits: Limits = field(default_factory=Limits)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
