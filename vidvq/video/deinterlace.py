"""Deinterlacing with FFmpeg's bwdif: one frame per frame, with unchanged order and times."""

from collections import deque
from collections.abc import Iterator

import av
import av.error
from av.filter import Graph

Numbered = tuple[int, av.VideoFrame]


def deinterlace(frames: Iterator[Numbered]) -> Iterator[Numbered]:
    """Deinterlace the frames that are flagged as interlaced; yield all others unchanged.

    A deinterlaced frame depends only on the frame itself and its neighbours. Except for the first frame, the result
    therefore does not depend on where decoding starts.

    Args:
        frames: ``(index, frame)`` in display order.

    Yields:
        ``(index, frame)`` in the same order.

    Raises:
        av.error.FFmpegError: bwdif does not support the frames.
    """
    fields: _Fields | None = None
    before: Numbered | None = None
    for numbered in frames:
        frame = numbered[1]
        if fields and not fields.takes(frame):
            yield from fields.rest()
            fields = None
        if fields is None and frame.interlaced_frame:
            fields = _Fields(frame)
            if before and fields.takes(before[1]):
                # Already yielded; only a neighbour of this frame.
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
    """bwdif for frames of one size and format; its output lags its input by one frame."""

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
        """Discard the frames that are still inside."""
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
