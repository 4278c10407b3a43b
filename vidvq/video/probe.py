"""What is in a video, counted rather than believed: the container's own frame count is never used."""

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Literal

import av
import av.error
import numpy as np
from av.container import InputContainer

from vidvq.errors import UsageError
from vidvq.video.container import VideoError, container_format

DecoderName = Literal["decord", "pyav"]

# libav's numbers: transfer curves that are not for SDR, the matrices that are or pass for BT.601, the full range.
_HDR = {16: "PQ", 18: "HLG"}
_BT601 = (2, 5, 6)
_FULL = 2
# Pixels so many times wider than high, or the other way round, are a mistake in the file.
_ODD_ASPECT = 10


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
                raise UsageError(f"{name}={value} must be more than 0")


@dataclass(frozen=True)
class VideoInfo:
    """A video's timeline and format.

    Attributes:
        container: libav demuxer.
        codec: libav's name of the codec, ``h264``.
        height, width: coded pixels.
        time_base: seconds per tick.
        pts: presentation time of every frame in ticks, ascending; one per packet found in the file. Packed, since an
            hour has a hundred thousand.
        torn: the file ends before its container's index or length says, so its tail is missing.
        open_groups: frames are stored behind a keyframe and shown before it.
        keyframes: indices of the frames that decode alone, ascending.
        quarter_turns: counter-clockwise turns that show the picture upright, from the display matrix.
        pixel_aspect: width of a pixel over its height.
        is_interlaced: its first frame holds two fields, and is not shown as it is stored.
        is_plain: 8-bit, upright, not interlaced, and of BT.601 in limited range or untagged.
    """

    container: str
    codec: str
    height: int
    width: int
    time_base: Fraction
    pts: Sequence[int]
    torn: bool
    open_groups: bool
    keyframes: tuple[int, ...] = ()
    quarter_turns: int = 0
    pixel_aspect: Fraction = Fraction(1)
    is_interlaced: bool = False
    is_plain: bool = True

    @property
    def shown_size(self) -> tuple[Fraction, Fraction]:
        """``(height, width)`` as it is shown: upright, in square pixels."""
        height, width = Fraction(self.height), self.width * self.pixel_aspect
        return (width, height) if self.quarter_turns % 2 else (height, width)

    @property
    def num_frames(self) -> int:
        """Frames found in the file."""
        return len(self.pts)

    @property
    def tick_per_frame(self) -> int:
        """The usual ticks from one frame to the next (the median)."""
        steps = np.sort(np.diff(np.asarray(self.pts, dtype=np.int64)))
        return max(int(steps[len(steps) // 2]), 1) if len(steps) else 1

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
        pts, keys, open_groups = _timeline(container, stream, limits)
        if not pts:
            raise VideoError("unreadable", "its video stream has no frames")
        aspect = stream.sample_aspect_ratio
        info = VideoInfo(
            container=container.format.name,
            codec=stream.codec_context.name,
            height=height,
            width=width,
            time_base=Fraction(stream.time_base),
            pts=pts,
            torn=_is_torn(path, container, stream),
            open_groups=open_groups,
            keyframes=tuple(index for index, tick in enumerate(pts) if tick in keys),
            pixel_aspect=Fraction(aspect) if aspect and _ODD_ASPECT > aspect > 1 / _ODD_ASPECT else Fraction(1),
        )
    # Not before the container is closed: libav keeps an index of the whole file for each that is open.
    first = _first_frame(path)
    turns = first.rotation // 90 % 4 if first else 0
    fields = first is not None and first.interlaced_frame
    return replace(info, quarter_turns=turns, is_interlaced=fields, is_plain=first is not None and _is_plain(first))


def _first_frame(path: Path) -> av.VideoFrame | None:
    """What tells of rotation and colour; None where it cannot be decoded, which is for the reader to tell."""
    try:
        with open_video(path) as container:
            frame = next(container.decode(container.streams.video[0]), None)
    except av.error.FFmpegError:
        return None
    if frame is not None and frame.color_trc in _HDR:
        raise VideoError(
            "hdr", f"has {_HDR[frame.color_trc]} brightness; make it SDR first, by a tone map of your choice"
        )
    return frame


def _is_plain(frame: av.VideoFrame) -> bool:
    eight_bit = all(component.bits == 8 for component in frame.format.components)
    untouched = not frame.rotation and not frame.interlaced_frame
    return eight_bit and untouched and frame.colorspace in _BT601 and frame.color_range != _FULL


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


def _timeline(container: InputContainer, stream: av.VideoStream, limits: Limits) -> "tuple[array[int], set[int], bool]":
    """Times of the frames, those of keyframes, and whether groups of pictures are open."""
    pts, ticks = array("q"), array("q")
    keys: set[int] = set()
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
                keys.add(packet.pts if packet.pts is not None else -1)
            elif keyframe is not None and packet.pts is not None and packet.pts < keyframe:
                open_groups = True
            if len(pts) > limits.max_frames:
                raise VideoError("too_large", f"has over limits.max_frames={limits.max_frames} frames")
    except av.error.FFmpegError as error:
        if not pts:
            raise VideoError("unreadable", f"no packet can be read: {_plain(error)}") from error
        # A torn tail: what came before it is whole.
    if (ascending := _distinct(pts)) is not None:
        return ascending, keys, open_groups
    # AVI and raw streams carry decode times alone; they are in order, and that order is what counts.
    if (ascending := _distinct(ticks)) is not None:
        return ascending, keys, open_groups
    rate = stream.average_rate or Fraction(25)
    assert stream.time_base is not None
    step = max(round(1 / (rate * Fraction(stream.time_base))), 1)
    return array("q", (index * step for index in range(len(pts)))), set(), open_groups


def _distinct(times: "array[int]") -> "array[int] | None":
    """Times in ascending order; None where one is there twice, or is not known (-1)."""
    ascending = np.sort(np.asarray(times))
    if -1 in times or np.any(ascending[1:] == ascending[:-1]):
        return None
    return array("q", ascending.tobytes())


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())
