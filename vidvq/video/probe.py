"""What is in a video, counted rather than believed: the container's own frame count is never used."""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class VideoInfo:
    """A video's timeline and format.

    Attributes:
        container: libav demuxer.
        codec: libav's name of the codec, ``h264``.
        height, width: coded pixels.
        time_base: seconds per tick.
        pts: presentation time of every frame in ticks, ascending; one per packet found in the file.
        torn: the container's index points past the end of the file, so its tail is missing.
    """

    container: str
    codec: str
    height: int
    width: int
    time_base: Fraction
    pts: tuple[int, ...]
    torn: bool

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
        height, width = stream.codec_context.height, stream.codec_context.width
        if height < 1 or width < 1:
            raise VideoError("unreadable", f"its video stream is {width}x{height} pixels")
        if height * width > limits.max_pixels:
            raise VideoError("too_large", f"is {width}x{height}; the cap is limits.max_pixels={limits.max_pixels}")
        if stream.time_base is None:
            raise VideoError("unreadable", "its video stream has no time base")
        pts = _timeline(container, stream, limits)
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
        )


def _is_torn(path: Path, container: InputContainer, stream: av.VideoStream) -> bool:
    size = path.stat().st_size
    if container.format.name.startswith("avi"):
        with path.open("rb") as file:
            return int.from_bytes(file.read(8)[4:], "little") + 8 > size
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _timeline(container: InputContainer, stream: av.VideoStream, limits: Limits) -> list[int]:
    pts: list[int] = []
    ticks: list[int] = []
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            pts.append(-1 if packet.pts is None else packet.pts)
            ticks.append(-1 if packet.dts is None else packet.dts)
            if len(pts) > limits.max_frames:
                raise VideoError("too_large", f"has over limits.max_frames={limits.max_frames} frames")
    except av.error.FFmpegError as error:
        if not pts:
            raise VideoError("unreadable", f"no packet can be read: {_plain(error)}") from error
        # A torn tail: what came before it is whole.
    if len(set(pts)) == len(pts) and (-1 not in pts):
        return sorted(pts)
    # AVI and raw streams carry decode times alone; they are in order, and that order is what counts.
    if len(set(ticks)) == len(ticks) and (-1 not in ticks):
        return sorted(ticks)
    rate = stream.average_rate or Fraction(25)
    assert stream.time_base is not None
    step = max(round(1 / (rate * Fraction(stream.time_base))), 1)
    return [index * step for index in range(len(pts))]


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())
