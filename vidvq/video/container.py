"""What a file is, by its first bytes, before any demuxer sees it.

A playlist or a script handed to libav makes it open other files and URLs. So a container is recognised by its magic,
anything else is refused, and the demuxer is then named, never guessed.
"""

from pathlib import Path

_TS_PACKET = 188


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
    """The libav demuxer for a file: ``mov``, ``matroska``, ``avi``, ``flv``, ``mpegts``, ``ogg``, ``mpeg`` or ``asf``.

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
    """The libav demuxer for a file that starts with ``head`` (1024 bytes, or all there is), or None."""
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"FLV\x01"):
        return "flv"
    if head.startswith(b"OggS"):
        return "ogg"
    if head.startswith((b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")):
        return "mpeg" if head[3] == 0xBA else "mpegvideo"
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "asf"
    for start in (0, 4):  # plain transport streams, and those with a 4-byte timestamp before each packet
        step = _TS_PACKET + start
        marks = head[start::step]
        if len(marks) >= 3 and set(marks) == {0x47}:
            return "mpegts"
    return None
