"""What is in a video, counted rather than believed: the container's own frame count is never used."""

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import av.error
from av.container import InputContainer

from vidvq.video.container import VideoError, container_format


@dataclass(frozen=True)
class Limits:
    """Caps that a video must keep within, each checked before memory is taken for it.

    ``deadline_s`` is wall time for the decode of one source within one shard.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    max_pixels: int = 8192 * 4320
    max_frames: int = 1_080_000
    max_bytes: int = 64 << 30
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value} must be more than 0")


@dataclass(frozen=True)
class VideoInfo:
    """A video's timeline and format.

    Attributes:
        container: libav demuxer.
        codec: libav's name of the codec, ``h264``.
        height, width: coded pixels.
        time_base: seconds per tick.
        pts: presentation time of every frame in ticks, ascending; one per packet found in the file.
        torn: the file ends before its container's index or length says, so its tail is missing.
        open_groups: frames are stored behind a keyframe and shown before it.
    """

    container: str
    codec: str
    height: int
    width: int
    time_base: Fraction
    pts: tuple[int, ...]
    torn: bool
    open_groups: bool

    @property
    def num_frames(self) -> int:
        """Frames found in the file."""
        return len(self.pts)

    @property
    def tick_per_frame(self) -> int:
        """The usual ticks from one frame to the next (the median)."""
        steps = sorted(b - a for a, b in zip(self.pts, self.pts[1:], strict=False))
        return max(steps[len(steps) // 2], 1) if steps else 1

    @property
    def fps(self) -> float:
        """Mean frames per second over the whole video."""
        ticks = self.pts[-1] - self.pts[0] + self.tick_per_frame
        return float(self.num_frames / (ticks * self.time_base))


def open_video(path: Path) -> InputContainer:
    """Open a video for reading: demuxer named by its magic, local files alone, no threads of libav's own.

    Raises:
        VideoError: it cannot be opened, or has no video stream.
    """
    demuxer = container_format(path)
    try:
        container = av.open(
            str(path.absolute()), mode="r", format=demuxer, container_options={"protocol_whitelist": "file"}
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("unreadable", f"{demuxer} container cannot be opened: {_plain(error)}") from error
    if not container.streams.video:
        container.close()
        raise VideoError("no_video_stream", f"{demuxer} container has no video stream")
    return container


def probe(path: Path, limits: Limits) -> VideoInfo:
    """Read a video's packets (not its pixels) and return its timeline.

    Raises:
        VideoError: unreadable, over a limit, or without frames.
    """
    size = path.stat().st_size if path.exists() else 0
    if size > limits.max_bytes:
        raise VideoError("too_large", f"has {size} bytes; the cap is limits.max_bytes={limits.max_bytes}")
    with open_video(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise VideoError("unknown_codec", f"its {container.format.name} stream has a codec that is not known")
        height, width = stream.codec_context.height, stream.codec_context.width
        if height < 1 or width < 1:
            raise VideoError("unreadable", f"its video stream is {width}x{height} pixels")
        if height * width > limits.max_pixels:
            raise VideoError("too_large", f"is {width}x{height}; the cap is limits.max_pixels={limits.max_pixels}")
        if stream.time_base is None:
            raise VideoError("unreadable", "its video stream has no time base")
        pts, open_groups = _timeline(container, stream, limits)
        if not pts:
            raise VideoError("unreadable", "its video stream has no frames")
        return VideoInfo(
            container=container.format.name,
            codec=stream.codec_context.name,
            height=height,
            width=width,
            time_base=Fraction(stream.time_base),
            pts=tuple(pts),
            torn=_is_torn(path, container, stream),
            open_groups=open_groups,
        )


def _is_torn(path: Path, container: InputContainer, stream: av.VideoStream) -> bool:
    size = path.stat().st_size
    if container.format.name.startswith("avi"):
        with path.open("rb") as file:
            return int.from_bytes(file.read(8)[4:], "little") + 8 > size
    if container.format.name.startswith("matroska"):
        return _matroska_end(path) > size
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _matroska_end(path: Path) -> int:
    """Where a matroska file ends by its own account; 0 where it does not say, as in a live recording."""
    with path.open("rb") as file:
        head = file.read(4096)
    place = 0
    for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # the EBML header, then the segment
        if head[place : place + 4] != element or place + 4 >= len(head) or not head[place + 4]:
            return 0
        # The first bit set says how many bytes the length has; all other bits set: unknown.
        width = 9 - head[place + 4].bit_length()
        mask = (1 << 7 * width) - 1
        length = int.from_bytes(head[place + 4 : place + 4 + width], "big") & mask
        if length == mask:
            return 0
        start = place + 4 + width
        place = start + length
    return place


def _timeline(container: InputContainer, stream: av.VideoStream, limits: Limits) -> tuple[list[int], bool]:
    pts: list[int] = []
    ticks: list[int] = []
    keyframe: int | None = None
    open_groups = False
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            pts.append(-1 if packet.pts is None else packet.pts)
            ticks.append(-1 if packet.dts is None else packet.dts)
            if packet.is_keyframe:
                keyframe = packet.pts
            elif keyframe is not None and packet.pts is not None and packet.pts < keyframe:
                open_groups = True
            if len(pts) > limits.max_frames:
                raise VideoError("too_large", f"has over limits.max_frames={limits.max_frames} frames")
    except av.error.FFmpegError as error:
        if not pts:
            raise VideoError("unreadable", f"no packet can be read: {_plain(error)}") from error
        # A torn tail: what came before it is whole.
    if len(set(pts)) == len(pts) and (-1 not in pts):
        return sorted(pts), open_groups
    # AVI and raw streams carry decode times alone; they are in order, and that order is what counts.
    if len(set(ticks)) == len(ticks) and (-1 not in ticks):
        return sorted(ticks), open_groups
    rate = stream.average_rate or Fraction(25)
    assert stream.time_base is not None
    step = max(round(1 / (rate * Fraction(stream.time_base))), 1)
    return [index * step for index in range(len(pts))], open_groups


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())
