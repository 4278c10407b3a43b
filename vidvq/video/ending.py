"""Where a file ends by its own account: before that, its tail is missing."""

from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream


def is_torn(path: Path, container: InputContainer, stream: VideoStream) -> bool:
    """Whether a file ends before its container's index or length says."""
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


def end_of_only_stream(container: InputContainer, time_base: Fraction) -> int | None:
    """When a matroska file of one stream ends by its own account (ticks), None where it does not say.

    It may store no duration of its last frame.
    """
    if not container.format.name.startswith("matroska") or len(container.streams) > 1 or not container.duration:
        return None
    return int(Fraction(container.duration + (container.start_time or 0), av.time_base) / time_base)
