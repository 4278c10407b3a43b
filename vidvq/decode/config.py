"""Settings of `vidvq decode`."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from vidvq.errors import UsageError
from vidvq.formats.execution import MAX_PIXELS, Execution, Precision, resolve_precision
from vidvq.runtime import RuntimeConfig
from vidvq.storage import is_remote

Format = Literal["mp4", "gif", "png", "npy"]
# Suffixes that name a media file rather than an output folder.
_OTHER_MEDIA = {"avi", "jpeg", "jpg", "m4v", "mkv", "mov", "npz", "png", "webm", "webp"}
# Default number of clips per call on a GPU, and groups of each clip.
_GPU_CLIPS, _GPU_GROUPS = 8, 8


@dataclass(frozen=True)
class DecodeConfig:
    """Settings of `vidvq decode`.

    Attributes:
        format: ``mp4`` (H.264), ``gif`` (one palette per frame), ``png`` (a folder of lossless frames) or ``npy``
            (``t h w c`` uint8); None follows the suffix of the output, else mp4.
        key: key of the one sample to decode; None decodes all.
        crf: quality of x264 for mp4, from 0 (lossless) to 51 (worst); None means 17. The other formats have none.
        batch: clips of one length and size that a worker decodes together; None means 8 on a GPU and 1 on CPUs. Frames
            do not depend on the other clips.
        device: ``cpu`` or ``cuda``; ``auto`` means the GPUs of the cluster, or of this machine, if there are any.
        precision: type of the networks on a GPU: ``bf16``, ``tf32`` or ``fp32``; None means ``bf16`` there, and
            ``fp32`` on CPUs.
        fps: frame rate of a generator's output (frames per second, 0.001 to 1000), which carries no frame times.
        runtime: where the job runs; does not change the output, except ``compile`` on GPUs. The default runs in this
            process, because Ray takes seconds to start.
    """

    format: Format | None = None
    key: str | None = None
    crf: Annotated[int, Field(ge=0, le=51)] | None = None
    batch: Annotated[int, Field(ge=1, le=256)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | None = None
    fps: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(workers=0))

    def format_for(self, out: Path) -> Format:
        """Return the format to write to ``out``.

        Raises:
            UsageError: ``format`` contradicts the suffix of ``out``; ``out`` is named as a file of another format; or
                ``png`` into an object store, where a folder cannot be written atomically; or another format than mp4
                has ``crf``.
        """
        if self.format == "png" and is_remote(out):
            raise UsageError(f"format=png cannot be written to {out}; give a local folder, or another format")
        suffix = out.suffix[1:].lower()
        if suffix in _OTHER_MEDIA and not out.is_dir():
            raise UsageError(f"--out {out.name} is not a format of decode; give a .mp4, .gif or .npy file, or a folder")
        named = next((name for name in get_args(Format) if name == suffix and name != "png"), None)
        if named and self.format not in (None, named):
            raise UsageError(f"format={self.format} contradicts --out {out.name}; give only one of them")
        kind = named or self.format or "mp4"
        if kind != "mp4" and self.crf is not None:
            raise UsageError(f"crf={self.crf} has no effect on {kind}; leave it out, or decode to mp4")
        return kind

    @property
    def mp4_crf(self) -> int:
        """``crf``, or its default."""
        return 17 if self.crf is None else self.crf


def default_batch(on_gpu: bool) -> int:
    """Return the number of clips per call of the decoder: one on CPUs, which gain nothing from more."""
    return _GPU_CLIPS if on_gpu else 1


def resolve_execution(config: DecodeConfig, device: str) -> Execution:
    """Decide how clips are decoded.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        UsageError: the precision is not available on the device.
    """
    on_gpu = device == "cuda"
    return Execution(
        device=device,
        precision=resolve_precision(config.precision, device),
        compiled=on_gpu and config.runtime.compile == "auto",
        streams=config.batch or default_batch(on_gpu),
        groups=_GPU_GROUPS if on_gpu else 1,
        max_pixels=MAX_PIXELS,
    )


@dataclass(frozen=True)
class VideoInterval:
    """An interval of one video: all frames visible at some time in ``[start, end)``.

    Attributes:
        source: URI of the video, as in the JSON of its token samples.
        start: start of the interval (seconds on the source's timeline); None for the start of the video.
        end: end of the interval, exclusive (seconds on the source's timeline); None for the end of the video.
    """

    source: str
    start: Fraction | None = None
    end: Fraction | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise UsageError(f"from={float(self.start):g} must be before to={float(self.end):g}")

    def overlaps(self, start: Fraction, end: Fraction) -> bool:
        """Whether a frame shown from ``start`` to ``end`` (seconds) is visible in the interval."""
        return (self.end is None or start < self.end) and (self.start is None or end > self.start)
