"""Streaming writers of mp4, gif, png and npy: memory does not grow with the number of frames."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.filter import Graph

from vidvq.errors import UsageError
from vidvq.storage import attempt_file, attempt_path, publish_replace, remove, sync_folder
from vidvq.video.encode import encode_frame, encode_png, encode_timed, mp4_clock, mp4_kind, shorten_pauses

_GOP_FRAMES = 250
_GIF_TICK = Fraction(1, 100)
# The longest time that a gif shows a frame for (ticks).
_GIF_PAUSE = (1 << 16) - 1


@dataclass(frozen=True)
class TimedFrame:
    """A frame with its time.

    Attributes:
        pixels: ``h w c`` uint8 RGB.
        start, end: interval in which the frame is shown (seconds on the timeline of its video).
    """

    pixels: np.ndarray
    start: Fraction
    end: Fraction


@dataclass(frozen=True)
class VideoShape:
    """The shape of a video to write.

    Attributes:
        height, width: size of the frames (pixels).
        time_base: duration of a tick of the frame times (seconds).
    """

    num_frames: int
    height: int
    width: int
    time_base: Fraction


def write_frames(
    path: Path, kind: str, frames: Iterable[TimedFrame], shape: VideoShape, crf: int = 17, overwrite: bool = True
) -> None:
    """Write a video to ``path`` atomically.

    Args:
        path: a file; for ``png`` a local folder of ``000000.png`` and so on.
        kind: ``mp4``, ``gif``, ``png`` or ``npy``.
        frames: frames sorted by time; times are written relative to the first.
        shape: number of frames, size and clock of the video.
        crf: quality of x264 for mp4, from 0 (lossless) to 51 (worst).
        overwrite: whether to replace an existing folder of ``png``; files are always replaced.

    Raises:
        UsageError: the number of frames is not ``shape.num_frames``.
    """
    if kind == "png":
        _write_folder(path, _counted(frames, shape), overwrite)
        return
    with attempt_file(path) as (opened, attempt):
        file = _Output(opened)
        counted = _counted(file.checked(frames), shape)
        if kind == "mp4":
            _mp4(file, counted, shape, crf)
        elif kind == "gif":
            _gif(file, counted, shape)
        else:
            _npy(file, counted, shape)
        file.check()
    publish_replace(attempt, path)


class _Output:
    """A file for a native library, which would print an exception of its file and continue: the first is kept."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | None = None

    def write(self, data: bytes, /) -> int:
        self._run(self._file.write, data)
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._run(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._run(self._file.tell)

    def check(self) -> None:
        """Raise the error that a call had, if any."""
        if self._error:
            raise self._error

    def checked(self, frames: Iterable[TimedFrame]) -> Iterator[TimedFrame]:
        """Yield frames until a call fails, whose error is raised."""
        for frame in frames:
            self.check()
            yield frame

    def _run(self, call: Callable[..., int], *arguments: Any) -> int:
        if self._error is None:
            try:
                return call(*arguments)
            except OSError as error:
                self._error = error
        return 0


def _counted(frames: Iterable[TimedFrame], shape: VideoShape) -> Iterator[TimedFrame]:
    count = 0
    for frame in frames:
        count += 1
        yield frame
    if count != shape.num_frames:
        raise UsageError(f"got {count} frames, expected {shape.num_frames}")


def _in_ticks(frames: Iterable[TimedFrame], clock: Fraction) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Frames with start and end in ticks from the first frame; starts are strictly ascending."""
    origin: Fraction | None = None
    free = 0
    for frame in frames:
        origin = frame.start if origin is None else origin
        start = max(round((frame.start - origin) / clock), free)
        free = start + 1
        yield frame.pixels, (start, max(round((frame.end - origin) / clock), free))


def _mp4(file: _Output, frames: Iterable[TimedFrame], shape: VideoShape, crf: int) -> None:
    clock = mp4_clock(shape.time_base)
    kind = mp4_kind(shape.height, shape.width, crf)
    encode_timed(file, _in_ticks(frames, clock), clock, kind, min(_GOP_FRAMES, shape.num_frames))


def _gif(file: _Output, frames: Iterable[TimedFrame], shape: VideoShape) -> None:
    """Encode a gif with one palette per frame: a shared palette would need all frames in memory."""
    graph = Graph()
    pixels_in = av.VideoFormat("rgb24", shape.width, shape.height)
    source = graph.add_buffer(width=shape.width, height=shape.height, format=pixels_in, time_base=_GIF_TICK)
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(file, mode="w", format="gif", options={"loop": "0", "fflags": "+bitexact"}) as container:
        options = {"flags": "+bitexact", "gifflags": "-transdiff"}
        stream = container.add_stream("gif", options=options)  # pyright: ignore[reportUnknownMemberType]
        stream.height, stream.width, stream.pix_fmt = shape.height, shape.width, "pal8"
        stream.time_base = stream.codec_context.time_base = _GIF_TICK
        length = 1

        def pull() -> None:
            while True:
                try:
                    frame = graph.vpull()
                except (BlockingIOError, EOFError):
                    return
                for packet in encode_frame(stream, frame):
                    packet.duration = length
                    container.mux(packet)  # pyright: ignore[reportUnknownMemberType]

        for pixels, (start, end) in shorten_pauses(_in_ticks(frames, _GIF_TICK), _GIF_PAUSE):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = start, _GIF_TICK
            length = end - start
            graph.vpush(frame)
            pull()
        graph.vpush(None)
        pull()


def _npy(file: _Output, frames: Iterable[TimedFrame], shape: VideoShape) -> None:
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (shape.num_frames, shape.height, shape.width, 3),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for frame in frames:
        file.write(np.ascontiguousarray(frame.pixels).tobytes())


def _write_folder(path: Path, frames: Iterable[TimedFrame], overwrite: bool) -> None:
    attempt, replaced = attempt_path(path), attempt_path(path)
    attempt.mkdir(parents=True)
    try:
        for index, frame in enumerate(frames):
            _write_png(attempt / f"{index:06d}.png", frame.pixels, path)
        sync_folder(attempt)
        if overwrite and path.exists():
            path.rename(replaced)
        attempt.rename(path)
    except OSError as error:
        # Another driver may have written the folder in the meantime.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
        remove(replaced)
    sync_folder(path.parent)


def _write_png(path: Path, pixels: np.ndarray, output: Path) -> None:
    """Write one file of an output. Its folder is not created again: another driver may have deleted the attempt."""
    try:
        with path.open("xb") as file:
            file.write(encode_png(pixels))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise error if error.filename else OSError(error.errno, error.strerror, str(output)) from error
