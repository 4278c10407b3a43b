"""One video stream of a local file: opened, chosen among others, and decoded past what is damaged in it."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidvq.video.container import VideoError, container_format
from vidvq.video.pictures import VideoPacket
from vidvq.video.webp import as_matroska

# Pictures that belong to a file and are not its video.
_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
# Codecs of still pictures: beside another video such a stream is a cover, whatever the container calls it.
_STILL_CODECS = {"mjpeg", "png", "bmp", "gif", "tiff", "webp"}
# A recording may begin inside a group of pictures, but not so many packets before the first that can be shown.
_PATIENCE = 3000


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder put out at one place of a stream.

    Attributes:
        packet: the packet it came from, counted from where decoding began.
        pts: presentation time (ticks); None where the file gives none.
        dts: the decoding time of the packet that made the decoder put it out (ticks).
        frame: None where a packet is damaged, or a frame is predicted from one that is.
    """

    packet: int
    pts: int | None = None
    dts: int | None = None
    frame: VideoFrame | None = None


def open_video(path: Path) -> InputContainer:
    """Open a video for reading: demuxer named by its magic, local files alone, no threads started by libav.

    Raises:
        VideoError: it cannot be opened, or has no video stream.
    """
    demuxer = container_format(path)
    try:
        if demuxer == "webp":
            container = av.open(as_matroska(path), mode="r", format="matroska")
        else:
            container = av.open(
                str(path.absolute()), mode="r", format=demuxer, container_options={"protocol_whitelist": "file"}
            )
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("unreadable", f"{demuxer} container cannot be opened: {one_line(error)}") from error
    try:
        video_stream(container)
    except VideoError:
        container.close()
        raise
    return container


def video_stream(container: InputContainer) -> VideoStream:
    """The stream to use: the one flagged as default, else the largest, else the first.

    Cover art and thumbnails are never used, and a stream of a codec for still pictures, of an unknown codec, or of one
    frame beside others flagged alike, only where there is no other.

    Raises:
        VideoError: ``no_video_stream``.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]
    if not streams:
        kind = "no video stream" if not container.streams.video else "no video stream but cover art"
        raise VideoError("no_video_stream", f"{container.format.name} container has {kind}")
    return max(streams, key=_rank)


def _rank(stream: VideoStream) -> tuple[bool, bool, bool, bool, int]:
    context = stream.codec_context
    if context is None:  # pyright: ignore[reportUnnecessaryComparison]
        return False, False, False, False, 0
    moves = context.name not in _STILL_CODECS
    default = bool(stream.disposition & Disposition.default)
    return True, moves, default, stream.frames != 1, context.width * context.height


@dataclass(frozen=True, slots=True, eq=False)
class _Tag:
    """Goes through a decoder with a packet. PyAV tells such objects apart by identity, which small numbers share."""

    number: int


def decode(container: InputContainer, stream: VideoStream, in_order: bool = False) -> Iterator[Decoded]:
    """Yield what the decoder puts out, in its order, from the first frame that can be shown on.

    A damaged packet does not end it. In its place comes a :class:`Decoded` without a frame, and so does each frame up
    to the next keyframe, since those are predicted from it. Which frames are whole depends on the packets since the
    keyframe before them, not on where decoding began.

    Args:
        container, stream: as they were opened.
        in_order: frames are known by their order alone, not by their times. Then those that a decoder held back when a
            packet failed count as damaged too, since their place among the lost ones is not known.
    """
    context = stream.codec_context
    stream.thread_type = "NONE"
    context.copy_opaque = True
    order = _Order(in_order, context.name == "libdav1d")
    number = 0
    for number, packet in numbered_packets(container, stream):
        packet.opaque = _Tag(number)
        yield from order.place(_fed(context, packet, number, order), number)
        if number >= _PATIENCE and not order.begun:
            return
    yield from order.place(_fed(context, None, number, order), number)
    yield from order.rest()


def _fed(context: VideoCodecContext, packet: "VideoPacket | None", number: int, order: "_Order") -> list[VideoFrame]:
    """Frames that come out for a packet; None for the end."""
    try:
        return context.decode(packet)  # pyright: ignore[reportUnknownMemberType]
    except av.error.FFmpegError:
        if packet is not None and not packet.is_discard:
            order.fail(number)
        return []


def numbered_packets(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoPacket]]:
    """The packets of a stream, counted from where reading began. A file that ends early ends here, too."""
    number = 0
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield number, packet
                number += 1
    except av.error.FFmpegError:
        return


class _Order:
    """Puts damage in its place among the frames as they come out of a decoder.

    Args:
        in_order: see :func:`decode`.
        fails_late: the decoder may report an error with a later packet than the damaged one.
    """

    def __init__(self, in_order: bool, fails_late: bool) -> None:
        self.begun = False
        self._in_order, self._fails_late = in_order, fails_late
        self._failed: deque[int] = deque()
        self._damaged = False

    def fail(self, number: int) -> None:
        """Take note of a packet that cannot be decoded."""
        self._failed.append(number)
        self._damaged = self._damaged or self._in_order

    def place(self, frames: list[VideoFrame], fed: int) -> Iterator[Decoded]:
        """Yield frames that came out when the packet ``fed`` went in, behind the failed packets before them."""
        for frame in frames:
            tag = frame.opaque
            number = tag.number if isinstance(tag, _Tag) else fed
            if self._fails_late and number in self._failed:
                self._failed.remove(number)
            yield from self._before(number)
            self._damaged = frame.is_corrupt or (self._damaged and not frame.key_frame)
            yield from self._begin(Decoded(number, frame.pts, frame.dts, None if self._damaged else frame))
            self._damaged = self._damaged or (self._in_order and bool(self._failed))

    def _before(self, number: int) -> Iterator[Decoded]:
        while self._failed and self._failed[0] < number:
            self._damaged = True
            yield from self._begin(Decoded(self._failed.popleft()))

    def rest(self) -> Iterator[Decoded]:
        """Yield what failed behind the last frame."""
        yield from self._before(self._failed[-1] + 1 if self._failed else 0)

    def _begin(self, decoded: Decoded) -> Iterator[Decoded]:
        self.begun = self.begun or decoded.frame is not None
        if self.begun:
            yield decoded


def one_line(error: Exception) -> str:
    """An error's words without its line breaks."""
    return " ".join(str(error).split())


def demuxer(names: str) -> str:
    """The first of libav's names of a demuxer: ``mov`` of ``mov,mp4,m4a``."""
    return names.partition(",")[0]
