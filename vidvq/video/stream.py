"""The video stream of a local file: opening, selection, and decoding that continues after damage."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidvq.video.container import VideoError, container_format
from vidvq.video.pictures import VideoPacket

# Streams of pictures that are not the video.
_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
# Codecs of still pictures: next to another video stream, such a stream is a cover.
_STILL_CODECS = {"mjpeg", "png", "bmp", "gif", "tiff", "webp"}
# A smaller limit (pixels) would refuse what codecs pad narrow videos to. Maximum of the option of FFmpeg.
_SMALL_FRAME, _MAX_OPTION = 1 << 22, (1 << 31) - 1
# Give up if none of this number of packets can be decoded. Recordings may start inside a group of pictures.
_MAX_SKIPPED = 3000


@dataclass(frozen=True, slots=True)
class Decoded:
    """Output of a decoder for one packet.

    Attributes:
        packet: index of the packet, from the start of decoding.
        pts: presentation time (ticks); None if the file has none.
        dts: decoding time of the packet that triggered the output (ticks).
        frame: the frame; None if its packet is damaged, or it is predicted from a damaged frame.
    """

    packet: int
    pts: int | None = None
    dts: int | None = None
    frame: VideoFrame | None = None


def open_video(path: Path, max_pixels: int, accelerator: HWAccel | None = None) -> InputContainer:
    """Open a local video, with the demuxer chosen by magic bytes and no access to other files.

    Args:
        max_pixels: maximum width times height of a frame (pixels). Larger ones, also after a change of the size, are
            not decoded; up to twice as much is allowed, because codecs round sizes up.
        accelerator: device to decode on; FFmpeg decodes itself what the device does not support.

    Raises:
        VideoError: the file cannot be opened, or has no video stream.
    """
    demuxer = container_format(path)
    try:
        if demuxer == "webp":
            # Few videos need Pillow.
            from vidvq.video.webp import as_matroska

            container = av.open(as_matroska(path), mode="r", format="matroska")
        else:
            container = av.open(
                str(path.absolute()),
                mode="r",
                format=demuxer,
                options=decoder_limits(max_pixels),
                container_options={"protocol_whitelist": "file"},
                hwaccel=accelerator,
            )
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("unreadable", f"{demuxer} container cannot be opened: {one_line(error)}") from error
    try:
        stream = video_stream(container)
    except VideoError:
        container.close()
        raise
    if stream.codec_context is not None:  # pyright: ignore[reportUnnecessaryComparison]
        stream.codec_context.options = decoder_limits(max_pixels)
    return container


def decoder_limits(max_pixels: int) -> dict[str, str]:
    """Options of a decoder that refuse frames of over twice this many pixels, before memory is allocated for them."""
    return {"max_pixels": str(min(max(2 * max_pixels, _SMALL_FRAME), _MAX_OPTION))}


def video_stream(container: InputContainer) -> VideoStream:
    """Select the video stream: the one flagged as default, else the largest, else the first.

    Cover art and thumbnails are never used. Streams of still-picture or unknown codecs, or of a single frame, are used
    only if there is no better one with the same flags.

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
    """Number attached to a packet. An object, because PyAV compares by identity, which small integers share."""

    number: int


def decode(container: InputContainer, stream: VideoStream, in_order: bool = False) -> Iterator[Decoded]:
    """Decode a stream in output order, from the first frame that can be shown.

    Decoding continues after damage: a damaged packet, and each frame up to the next keyframe, because these are
    predicted from it, become :class:`Decoded` without a frame. Which frames are valid depends only on the packets since
    the keyframe before them, not on where decoding started.

    Args:
        in_order: whether frames are identified by order instead of time. Frames that the decoder held back when a
            packet failed then count as damaged too, because their order among the lost ones is unknown.
    """
    context = stream.codec_context
    stream.thread_type = "NONE"
    context.copy_opaque = True
    order = _Order(in_order, context.name == "libdav1d")
    number = 0
    try:
        for number, packet in numbered_packets(container, stream):
            packet.opaque = _Tag(number)
            yield from order.insert(_decode_packet(context, packet, number, order), number)
            if number >= _MAX_SKIPPED and not order.begun:
                return
        yield from order.insert(_decode_packet(context, None, number, order), number)
        yield from order.rest()
    finally:
        # Threads of dav1d free tags, for which they take the GIL. PyAV holds it while it frees a decoder, which waits
        # for its threads; here it does not.
        context.flush_buffers()


def _decode_packet(
    context: VideoCodecContext, packet: "VideoPacket | None", number: int, order: "_Order"
) -> list[VideoFrame]:
    """Frames that the decoder outputs for a packet; None flushes it."""
    try:
        return context.decode(packet)  # pyright: ignore[reportUnknownMemberType]
    except av.error.FFmpegError:
        if packet is not None:
            order.fail(number, packet.is_discard)
        return []


def numbered_packets(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoPacket]]:
    """Yield the packets of a stream, numbered from the current position; stops where a truncated file ends."""
    number = 0
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield number, packet
                number += 1
    except av.error.FFmpegError:
        return


class _Order:
    """Inserts damaged packets in order among the decoded frames.

    Args:
        in_order: see :func:`decode`.
        fails_late: the decoder may report an error with a later packet than the damaged one.
    """

    def __init__(self, in_order: bool, fails_late: bool) -> None:
        self.begun = False
        self._in_order, self._fails_late = in_order, fails_late
        self._failed: deque[int] = deque()
        self._damaged = False

    def fail(self, number: int, is_discard: bool) -> None:
        """Record a packet that cannot be decoded. One that an edit list discards has no frame, but others need it."""
        if not is_discard:
            self._failed.append(number)
        self._damaged = self._damaged or self._in_order or is_discard

    def insert(self, frames: list[VideoFrame], fed: int) -> Iterator[Decoded]:
        """Yield the frames output for packet ``fed``, after the failed packets that precede them."""
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
        """Yield the failed packets after the last frame."""
        yield from self._before(self._failed[-1] + 1 if self._failed else 0)

    def _begin(self, decoded: Decoded) -> Iterator[Decoded]:
        self.begun = self.begun or decoded.frame is not None
        if self.begun:
            yield decoded


def one_line(error: Exception) -> str:
    """The message of an error without line breaks.

    Of errors with a file name only the description: a temporary copy has another name each time, and messages are part
    of the plan, which must be the same for every driver.
    """
    message = str(error)
    if isinstance(error, OSError | av.error.FFmpegError) and error.filename:
        message = error.strerror or type(error).__name__
    return " ".join(message.split())


def demuxer(names: str) -> str:
    """First libav name of a demuxer, such as ``mov`` of ``mov,mp4,m4a``."""
    return names.partition(",")[0]
