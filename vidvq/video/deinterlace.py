"""Frames that hold two fields, made into one picture each by libav's bwdif, at their own places and times."""

from collections import deque
from collections.abc import Iterator

import av
import av.error
from av.filter import Graph

Numbered = tuple[int, av.VideoFrame]


def deinterlaced(frames: Iterator[Numbered]) -> Iterator[Numbered]:
    """Yield the same frames, those that are flagged as interlaced made whole, the others to the bit as they came.

    A frame made whole follows from itself and the frames before and after it alone, so it does not matter where a
    walk through a video began, but for its first frame.

    Args:
        frames: ``(index, frame)`` in the order of their display.

    Raises:
        av.error.FFmpegError: bwdif cannot take them.
    """
    fields: _Fields | None = None
    before: Numbered | None = None
    for numbered in frames:
        frame = numbered[1]
        if fields and not fields.takes(frame):
            yield from fields.rest()
            fields = before = None
        if fields is None and frame.interlaced_frame:
            fields = _Fields(frame)
            if before and fields.takes(before[1]):
                # It has gone out already, and is here as a neighbour.
                assert not fields.feed(before)
                fields.skip()
        if fields is None:
            yield numbered
        else:
            yield from fields.feed(numbered)
        before = numbered
    if fields:
        yield from fields.rest()


class _Fields:
    """bwdif for frames of one size and format. It is one frame behind what it is fed."""

    def __init__(self, frame: av.VideoFrame) -> None:
        self._shape = _shape(frame)
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        filtering = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced:threads=1")
        sink = self._graph.add("buffersink")
        source.link_to(filtering)
        filtering.link_to(sink)
        self._graph.configure()
        self._inside: deque[int] = deque()
        self._skipped = 0

    def takes(self, frame: av.VideoFrame) -> bool:
        return _shape(frame) == self._shape

    def skip(self) -> None:
        """Of the frames inside give out none."""
        self._skipped = len(self._inside)

    def feed(self, numbered: Numbered) -> list[Numbered]:
        index, frame = numbered
        self._inside.append(index)
        self._graph.push(frame)
        return self._made()

    def rest(self) -> list[Numbered]:
        self._graph.push(None)
        return self._made()

    def _made(self) -> list[Numbered]:
        made: list[Numbered] = []
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return made
            assert isinstance(frame, av.VideoFrame)
            index = self._inside.popleft()
            if self._skipped:
                self._skipped -= 1
            else:
                made.append((index, frame))


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
