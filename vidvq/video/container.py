"""What a file is, by its first bytes, before any demuxer sees it.

A playlist or a script handed to libav makes it open other files and URLs. So a container is recognised by its magic,
anything else is refused, and the demuxer is then named, never guessed.
"""

import re
from pathlib import Path

_TS_PACKET = 188
# A transport stream's packets, those with a 4-byte timestamp before each, and those with 16 bytes of parity behind.
_TS_STEPS = (_TS_PACKET, _TS_PACKET + 4, _TS_PACKET + 16)
_TS_MARKS = 4
_WEBP_MOVES = 2
# Brands of still pictures in the container of mp4.
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
# The first unit of a raw stream: parameters, or the delimiter before them.
_RAW_H264 = re.compile(rb"\x00{2,3}\x01[\x67\x27\x47\x09]")
_RAW_HEVC = re.compile(rb"\x00{2,3}\x01[\x40\x42\x46]\x01")
_RAW_MPEG4 = re.compile(rb"\x00\x00\x01[\x00-\x0e]")


class VideoError(Exception):
    """A video that cannot be used: a short reason that is counted, and a sentence for a person.

    It is not the user's mistake; a corpus goes on without the video.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def container_format(path: Path) -> str:
    """The libav demuxer for a file, one of those that :func:`sniff` names.

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
        raise VideoError("not_a_video", f"starts with {head[:16]!r}, which is no known video container")
    return found


def sniff(head: bytes) -> str | None:
    """The libav demuxer for a file that starts with ``head`` (1024 bytes, or all there is), or None.

    These alone are ever opened: ``mov``, ``matroska``, ``avi``, ``flv``, ``mpegts``, ``mpeg``, ``ogg``, ``asf``,
    ``mxf``, ``dv``, ``nut``, ``rm``, ``wtv``, ``ivf``, ``obu``, ``yuv4mpegpipe``, ``gif``, ``apng``, the raw streams
    ``h264``, ``hevc``, ``m4v``, ``mpegvideo`` and ``vc1``, and ``webp``, an animation that Pillow decodes (see
    :mod:`vidvq.video.webp`). Playlists, subtitles, still images and sound are not among them.
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
    """A recording may begin anywhere in a packet."""
    for step in _TS_STEPS:
        for start in range(step):
            marks = head[start::step]
            if set(marks) == {0x47} and (len(marks) >= _TS_MARKS or (len(marks) == _TS_MARKS - 1 and start < 5)):
                return True
    return False
