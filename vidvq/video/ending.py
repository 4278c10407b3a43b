"""The end of a file according to its container, to detect truncation."""

from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# Length of an AVI file that FFmpeg writes to a pipe.
_UNKNOWN_LENGTH = 0xFFFFFFFF


def is_torn(path: Path, container: InputContainer, stream: VideoStream) -> bool:
    """Whether a file is shorter than the index or the length in its container."""
    size = path.stat().st_size
    if container.format.name.startswith("avi"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8)[4:], "little")
        return length != _UNKNOWN_LENGTH and length + 8 > size
    if container.format.name.startswith("matroska"):
        return _matroska_end(path) > size
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _matroska_end(path: Path) -> int:
    """Size of a Matroska file according to its header (bytes); 0 if unknown, as in a live recording."""
    with path.open("rb") as file:
        head = file.read(4096)
    position = 0
    for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # the EBML header, then the segment
        if head[position : position + 4] != element or position + 4 >= len(head) or not head[position + 4]:
            return 0
        # The position of the first set bit gives the number of bytes of the length. All other bits set: unknown.
        width = 9 - head[position + 4].bit_length()
        mask = (1 << 7 * width) - 1
        length = int.from_bytes(head[position + 4 : position + 4 + width], "big") & mask
        if length == mask:
            return 0
        start = position + 4 + width
        position = start + length
    return position


def end_of_only_stream(
    container: InputContainer, time_base: Fraction, last_pts: int, last_ends: int | None
) -> int | None:
    """End time of a Matroska file with a single stream (ticks); None if unknown.

    The duration of the last frame may not be stored elsewhere.

    Args:
        last_pts: time of the last frame (ticks).
        last_ends: end of the last frame according to its packet (ticks); None if unknown.
    """
    if not container.format.name.startswith("matroska") or len(container.streams) > 1 or not container.duration:
        return None
    # FFmpeg stores the time of the end as the duration, mkvmerge the time from the first frame to the end.
    lengths = (container.duration, container.duration + (container.start_time or 0))
    ends = [int(Fraction(length, av.time_base) / time_base) for length in lengths]
    later = [end for end in ends if end > last_pts] or ends
    return min(later, key=lambda end: abs(end - (last_pts if last_ends is None else last_ends)))
