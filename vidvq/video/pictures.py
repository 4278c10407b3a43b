"""Properties of a picture from the header bits of its packet, without decoding."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from av.video.codeccontext import VideoCodecContext

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

# Quoted: PyAV's class is generic only for type checkers.
VideoPacket: TypeAlias = "Packet[VideoStream]"
# Parameter sets and messages before a picture are usually shorter.
_HEAD_BYTES = 4096
_SLICES = (1, 2, 5)


def is_hidden(codec: str, packet: VideoPacket) -> bool:
    """Whether a packet holds a reference frame that is not shown (VP8, VP9)."""
    test = _HIDDEN.get(codec)
    return test is not None and test(packet)


def has_hidden_frames(codec: str) -> bool:
    """Whether a codec has hidden frames; see :func:`is_hidden`."""
    return codec in _HIDDEN


def is_b_picture(context: VideoCodecContext, packet: VideoPacket) -> bool:
    """Whether a packet holds a bidirectionally predicted picture (H.264, MPEG-1, MPEG-2, MPEG-4)."""
    head = bytes(memoryview(packet)[:_HEAD_BYTES])
    if context.name == "h264":
        return any(_is_b_slice(unit) for unit in _units(head, context.extradata or b"") if unit[0] & 31 in _SLICES)
    if context.name == "mpeg4":
        position = head.find(b"\x00\x00\x01\xb6") + 4
        return 4 <= position < len(head) and head[position] >> 6 == 2
    if context.name in ("mpeg1video", "mpeg2video"):
        # Ten bits of temporal reference, then three of the picture coding type.
        position = head.find(b"\x00\x00\x01\x00") + 5
        return 5 <= position < len(head) and head[position] >> 3 & 7 == 3
    return False


def _units(data: bytes, extradata: bytes) -> Iterator[bytes]:
    """NAL units of an H.264 packet, after start codes or lengths; the last may be incomplete."""
    if not extradata.startswith(b"\x01"):
        for unit in data.split(b"\x00\x00\x01")[1:]:
            if unit:
                yield unit
        return
    width = (extradata[4] & 3) + 1 if len(extradata) > 4 else 4
    position = 0
    while position + width < len(data):
        length = int.from_bytes(data[position : position + width], "big")
        yield data[position + width : position + width + max(length, 1)]
        position += width + length


def _is_b_slice(unit: bytes) -> bool:
    bits = int.from_bytes(unit[1:17].ljust(16, b"\xff"), "big")
    left = 128
    kind = 0
    for _ in range(2):  # the slice's first macroblock, then its type, as Exp-Golomb codes
        zeros = 0
        while left and not bits >> (left - 1) & 1:
            zeros, left = zeros + 1, left - 1
        left -= zeros + 1
        if left < 0:
            return False
        kind = (bits >> left & (1 << zeros + 1) - 1) - 1
    return kind % 5 == 1


def _hidden_vp8(packet: VideoPacket) -> bool:
    return not memoryview(packet)[0] & 0x10


def _hidden_vp9(packet: VideoPacket) -> bool:
    """Whether a packet has only a frame that is not shown."""
    data = memoryview(packet)
    marker, last = data[0], data[-1]
    profile = marker >> 5 & 1 | marker >> 3 & 2
    # Frame marker (two bits), profile (two, three in profile 3), show_existing_frame, frame_type, show_frame.
    shown = marker >> (0 if profile == 3 else 1) & 1
    shows_old = marker >> (2 if profile == 3 else 3) & 1
    return last & 0xE0 != 0xC0 and not shown and not shows_old


_HIDDEN = {"vp8": _hidden_vp8, "vp9": _hidden_vp9}
