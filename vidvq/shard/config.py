"""Settings of `vidvq shard`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from vidvq.corpus.lists import ListPolicy
from vidvq.errors import UsageError
from vidvq.runtime import RuntimeConfig
from vidvq.video.limits import Limits
from vidvq.video.policy import VideoPolicy
from vidvq.video.probe import DecoderName


@dataclass(frozen=True)
class ClipPolicy(VideoPolicy):
    """How a video becomes clips. With the sources, these settings determine every byte of the shards.

    Attributes:
        num_frames: length of a full clip (frames).
        min_frames: minimum length of the last clip of a video (frames); a shorter remainder is dropped.
        stride: distance between the starts of two clips (frames); None means ``num_frames``, clips without overlap.
        fps: sampling rate (frames per second), by time; None keeps every frame of the source.
        short_side: length to scale the short side to (pixels); None keeps the source's size.
        multiple: height and width are rounded to a multiple of this (pixels).
        size: ``[height, width]`` of every clip (pixels), instead of ``short_side``.
        fit: how to reach an aspect ratio that is not the source's: ``crop`` around the centre, ``pad`` with black, or
            ``stretch``.
        decoder: ``pyav``; ``decord``, which is used only for files that it decodes correctly, and PyAV for the rest; or
            ``nvdec``, a GPU's decoder, for H.264, HEVC and VP9 that it supports, and PyAV for the rest.
        encoding: ``h264`` (mp4, keyframes at the start and at scene cuts), ``h264-fastdecode`` (the same, decoded
            faster), ``ffv1`` (mkv, lossless), ``frames`` (npy, raw pixels) or ``copy`` (mkv, the packets of the source,
            cut at keyframes).
        crf: quality of x264, from 0 (lossless) to 51 (worst).
    """

    num_frames: Annotated[int, Field(ge=1)] = 33
    min_frames: Annotated[int, Field(ge=1)] = 9
    stride: Annotated[int, Field(ge=1)] | None = None
    decoder: DecoderName = "pyav"
    encoding: Literal["h264", "h264-fastdecode", "ffv1", "frames", "copy"] = "h264"
    crf: Annotated[int, Field(ge=0, le=51)] = 17

    def __post_init__(self) -> None:
        if self.min_frames > self.num_frames:
            raise UsageError(
                f"min_frames={self.min_frames} must be at most num_frames={self.num_frames}; set "
                f"clip.min_frames={self.num_frames} or less"
            )
        if self.encoding == "copy" and (self.fps or self.short_side or self.size):
            raise UsageError("encoding='copy' changes no picture; it needs fps=null short_side=null size=null")
        if self.encoding == "copy" and self.stride:
            raise UsageError(f"stride={self.stride}: encoding='copy' cuts at keyframes; it needs stride=null")
        if self.size and any(side % self.multiple for side in self.size):
            raise UsageError(f"size={list(self.size)} must be multiples of multiple={self.multiple}")


@dataclass(frozen=True)
class CutPolicy:
    """Where clips may begin and end, in addition to the length and stride of :class:`ClipPolicy`.

    Attributes:
        kind: ``windows`` cuts the whole video into windows; ``shots`` detects shot boundaries first, which decodes the
            video once more, and no clip crosses one.
        threshold: sensitivity of ``kind=shots``: a boundary is a change between two frames that exceeds this multiple
            of the mean change around it (PySceneDetect's adaptive detector).
        min_shot_s: minimum length of a shot of ``kind=shots`` (seconds); a boundary that follows sooner is ignored.
    """

    kind: Literal["windows", "shots"] = "windows"
    threshold: Annotated[float, Field(gt=0)] = 3.0
    min_shot_s: Annotated[float, Field(ge=0)] = 0.5


@dataclass(frozen=True)
class FilterPolicy:
    """Which videos and clips are dropped. Each dropped item is counted, with the name of the filter as its reason.

    Attributes:
        duplicates: drop a file whose bytes equal those of an earlier input (``filtered(duplicate)``).
        min_side: minimum short side of a source (pixels); smaller ones are dropped (``filtered(too_small)``).
        min_luma: minimum mean brightness of a clip, from 0 (black) to 1; darker ones are dropped
            (``filtered(too_dark)``).
        min_motion: minimum mean absolute change of a pixel from frame to frame, from 0 to 1; stiller clips are dropped
            (``filtered(static)``).
    """

    duplicates: bool = True
    min_side: Annotated[int, Field(ge=1)] = 1
    min_luma: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_motion: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True)
class ShardConfig:
    """Settings of `vidvq shard`.

    Attributes:
        clip: length, sampling, size and encoding of the clips.
        cut: where a clip may begin and end.
        filters: which videos and clips are dropped.
        lists: the columns of input lists.
        clips_per_shard: planned clips per tar file.
        max_failed: fraction of items that may fail before the exit code is 1.
        limits: caps on a single video.
        runtime: where the job runs; does not change the output.
    """

    clip: ClipPolicy = field(default_factory=ClipPolicy)
    cut: CutPolicy = field(default_factory=CutPolicy)
    filters: FilterPolicy = field(default_factory=FilterPolicy)
    lists: ListPolicy = field(default_factory=ListPolicy)
    clips_per_shard: Annotated[int, Field(ge=1)] = 256
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    limits: Limits = field(default_factory=Limits)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
