"""What a few bits of a packet tell of the picture in it, without decoding."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from av.video.codeccontext import VideoCodecContext

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

# In quotes: PyAV's class is generic for type checkers alone.
VideoPacket: TypeAlias = "Packet[VideoStream]"
# Parameters and messages before a picture take no more than so much, as a rule.
_HEAD_BYTES = 4096
_SLICES = (1, 2, 5)


def is_hidden(codec: str, packet: VideoPacket) -> bool:
    """Whether a packet holds a frame that others are predicted from and that is not shown itself (VP8, VP9)."""
    told = _HIDDEN.get(codec)
    return told is not None and told(packet)


def may_hide(codec: str) -> bool:
    """Whether :func:`is_hidden` needs to be asked."""
    return codec in _HIDDEN


def is_b_picture(context: VideoCodecContext, packet: VideoPacket) -> bool:
    """Whether a packet holds a picture that is predicted both ways (H.264, MPEG-1, MPEG-2, MPEG-4)."""
    head = bytes(memoryview(packet)[:_HEAD_BYTES])
    if context.name == "h264":
        return any(_is_b_slice(unit) for unit in _units(head, context.extradata or b"") if unit[0] & 31 in _SLICES)
    if context.name == "mpeg4":
        place = head.find(b"\x00\x00\x01\xb6") + 4
        return 4 <= place < len(head) and head[place] >> 6 == 2
    if context.name in ("mpeg1video", "mpeg2video"):
        # Ten bits of place in its group, then three of the kind of picture.
        place = head.find(b"\x00\x00\x01\x00") + 5
        return 5 <= place < len(head) and head[place] >> 3 & 7 == 3
    return False


def _units(data: bytes, extradata: bytes) -> Iterator[bytes]:
    """The units of an H.264 packet, behind start codes or their lengths; the last may be cut short."""
    if not extradata.startswith(b"\x01"):
        for unit in data.split(b"\x00\x00\x01")[1:]:
            if unit:
                yield unit
        return
    width = (extradata[4] & 3) + 1 if len(extradata) > 4 else 4
    place = 0
    while place + width < len(data):
        length = int.from_bytes(data[place : place + width], "big")
        yield data[place + width : place + width + max(length, 1)]
        place += width + length


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
    """A frame that is not shown, in a packet without another one that is."""
    data = memoryview(packet)
    marker, last = data[0], data[-1]
    profile = marker >> 5 & 1 | marker >> 3 & 2
    # Two bits of mark and two of profile (three of profile 3), then: an old frame is shown, keyframe or not, shown.
    shown = marker >> (0 if profile == 3 else 1) & 1
    shows_old = marker >> (2 if profile == 3 else 3) & 1
    return last & 0xE0 != 0xC0 and not shown and not shows_old


_HIDDEN = {"vp8": _hidden_vp8, "vp9": _hidden_vp9}
