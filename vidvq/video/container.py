"""Detection of the container format from the first bytes of a file.

With playlists and scripts, libav opens other files and URLs. Therefore the demuxer is chosen by magic bytes, never
guessed by libav, and all other files are refused.
"""

import re
from pathlib import Path

_TS_PACKET = 188
# Packet sizes of transport streams: plain, with a 4-byte timestamp before, and with 16 bytes of parity after.
_TS_STEPS = (_TS_PACKET, _TS_PACKET + 4, _TS_PACKET + 16)
_TS_MARKS = 4
_WEBP_MOVES = 2
# Brands of still pictures in an mp4 container.
_STILLS = {b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1"}
_ATOMS = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_MAGIC = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"YUV4MPEG2 ", "yuv4mpegpipe"),
    (b"DKIF\x00\x00", "ivf"),
    (b"\x12\x00\x0a", "obu"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01", "mxf"),
    (b"\x1f\x07\x00\x3f", "dv"),
    (b"\x1f\x07\x00\xbf", "dv"),
    (b"nut/multimedia container\x00", "nut"),
    (b".RMF", "rm"),
    (b"\xb7\xd8\x00\x20\x37\x49\xda\x11", "wtv"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x00\x00\x01\xb3", "mpegvideo"),
    (b"\x00\x00\x01\xb0", "m4v"),
    (b"\x00\x00\x01\x0f", "vc1"),
)
# First unit of a raw stream: parameter sets, an access unit delimiter, or (H.264) the text that x264 writes.
_RAW_H264 = re.compile(rb"\x00{2,3}\x01[\x67\x27\x47\x09]|\x00{3}\x01\x06")
_RAW_HEVC = re.compile(rb"\x00{2,3}\x01[\x40\x42\x46]\x01")
_RAW_MPEG4 = re.compile(rb"\x00\x00\x01[\x00-\x0e]")


class VideoError(Exception):
    """A video that cannot be used. Not an error of the user: a corpus job continues without the video.

    Attributes:
        reason: short reason, for counting.
        detail: description, continuing a sentence that starts with the video.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def container_format(path: Path) -> str:
    """Detect the libav demuxer for a file; see :func:`sniff`.

    Raises:
        VideoError: ``unreadable``, ``empty_file`` or ``not_a_video``.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise VideoError("unreadable", f"cannot be opened: {error.strerror}") from error
    if not head:
        raise VideoError("empty_file", "has no bytes")
    found = sniff(head)
    if found is None:
        raise VideoError("not_a_video", "starts like no known video container")
    return found


def sniff(head: bytes) -> str | None:
    """Detect the libav demuxer for a file that starts with ``head`` (1024 bytes, or the whole file); None if unknown.

    Only these are ever opened: ``mov``, ``matroska``, ``avi``, ``flv``, ``mpegts``, ``mpeg``, ``ogg``, ``asf``,
    ``mxf``, ``dv``, ``nut``, ``rm``, ``wtv``, ``ivf``, ``obu``, ``yuv4mpegpipe``, ``gif``, ``apng``, the raw streams
    ``h264``, ``hevc``, ``m4v``, ``mpegvideo`` and ``vc1``, and ``webp``, an animation that Pillow decodes (see
    :mod:`vidvq.video.webp`). Playlists, subtitles, still images and sound are refused.
    """
    if head[4:8] in _ATOMS:
        return None if head[4:8] == b"ftyp" and head[8:12] in _STILLS else "mov"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"RIFF") and head[8:16] == b"WEBPVP8X":
        return "webp" if head[20:21] and head[20] & _WEBP_MOVES else None
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "apng" if b"acTL" in head else None
    for magic, demuxer in _MAGIC:
        if head.startswith(magic):
            return demuxer
    for pattern, demuxer in ((_RAW_H264, "h264"), (_RAW_HEVC, "hevc"), (_RAW_MPEG4, "m4v")):
        if pattern.match(head):
            return demuxer
    return "mpegts" if _has_ts_marks(head) else None


def _has_ts_marks(head: bytes) -> bool:
    """Whether sync bytes occur at the packet size of a transport stream, from any offset."""
    for step in _TS_STEPS:
        for start in range(step):
            marks = head[start::step]
            if set(marks) == {0x47} and (len(marks) >= _TS_MARKS or (len(marks) == _TS_MARKS - 1 and start < 5)):
                return True
    return False
