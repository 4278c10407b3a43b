"""Encoders of clips and frames: H.264 in mp4 and FFV1 in Matroska, with exact frame times; npy; PNG."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Protocol, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from vidvq.video.pictures import VideoPacket

# Sources with a finer time base than this are written with this one.
_MAX_TICKS_PER_S = 1_000_000
_MAX_TICK_S = 1000
_MP4_TICKS_PER_S, _MP4_PAUSE = 10_000, 1 << 28
_SHORT_MP4_S = Fraction(1, 100)
# Container, codec, pixel format and options of lossless clips.
FFV1_KIND = ("matroska", "ffv1", "bgr0", {"level": "3", "slicecrc": "1", "threads": "1"})


def encode_mp4(
    frames: np.ndarray,
    pts: tuple[int, ...],
    time_base: Fraction,
    crf: int,
    duration: int | None = None,
    fast_decode: bool = False,
) -> bytes:
    """Encode a clip as H.264 in mp4, deterministically; further keyframes are at cuts to another scene only.

    Args:
        frames: ``t h w c`` uint8 RGB.
        pts: time of each frame (ticks), ascending; shifted to start at 0.
        time_base: duration of a tick (seconds).
        crf: quality of x264, from 0 (lossless) to 51 (worst).
        duration: time from the first frame to the end of the last (ticks); None repeats the duration of the frame
            before the last.
        fast_decode: whether to leave out what makes decoding slow: CABAC, the deblocking filter, weighted prediction.
    """
    container, codec, pixels, options = mp4_kind(frames.shape[1], frames.shape[2], crf)
    if fast_decode:
        options = options | {"tune": "fastdecode"}
    if len(pts) > 2 and (duration or pts[-1] - pts[0]) * time_base < _SHORT_MP4_S:
        # An mp4 delays its first frame by B-frames, and stores in whole milliseconds how much of it is shown.
        options = options | {"bf": "0"}
    return _encode(frames, pts, time_base, duration, (container, codec, pixels, options))


def encode_ffv1(frames: np.ndarray, pts: tuple[int, ...], time_base: Fraction, duration: int | None = None) -> bytes:
    """Encode a clip losslessly as FFV1 (RGB) in Matroska. See :func:`encode_mp4` for the arguments."""
    return _encode(frames, pts, time_base, duration, FFV1_KIND)


def encode_npy(frames: np.ndarray) -> bytes:
    """Encode a clip ``t h w c`` uint8 RGB as an npy file."""
    buffer = io.BytesIO()
    np.save(buffer, frames, allow_pickle=False)
    return buffer.getvalue()


def _encode(
    frames: np.ndarray,
    pts: tuple[int, ...],
    time_base: Fraction,
    duration: int | None,
    kind: tuple[str, str, str, dict[str, str]],
) -> bytes:
    count = len(frames)
    if count != len(pts) or not count:
        raise ValueError(f"{count} frames need as many times, and at least 1; got {len(pts)}")
    first, last = pts[0], pts[count - 1]
    clock = mp4_clock(time_base)
    end = first + duration if duration else last + (last - pts[count - 2] if count > 1 else 1)
    times = [round((tick - first) * time_base / clock) for tick in (*pts, end)]
    buffer = io.BytesIO()
    encode_timed(buffer, zip(frames, pairwise(times), strict=False), clock, kind, count)
    return buffer.getvalue()


def mp4_clock(time_base: Fraction) -> Fraction:
    """Time base of the output for a source with ``time_base``: the same, from a millionth of a second to 1000 s."""
    if time_base > _MAX_TICK_S:
        return Fraction(_MAX_TICK_S)
    return time_base if time_base.denominator <= _MAX_TICKS_PER_S else Fraction(1, _MAX_TICKS_PER_S)


def _mp4_pause(clock: Fraction) -> int:
    """The longest time that an mp4 shows a frame for (ticks of ``clock``, at least 1)."""
    # libav doubles the ticks per second until there are 10,000. It stores the time from the decoding of a frame to its
    # end in 31 bits, and a frame that others depend on may be decoded several frames early.
    scale = clock.denominator
    while scale < _MP4_TICKS_PER_S:
        scale *= 2
    return max(int(Fraction(_MP4_PAUSE, scale) / clock), 1)


def shorten_pauses(
    frames: Iterable[tuple[np.ndarray, tuple[int, int]]], longest: int
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Yield frames with start and end (ticks), of which none is shown for over ``longest``; later ones move up."""
    before, cut = 0, 0
    for pixels, (start, end) in frames:
        cut += max(start - cut - before - longest, 0)
        before = start - cut
        yield pixels, (before, before + min(end - start, longest))


class OutputFile(Protocol):
    """What a container needs of its file."""

    def write(self, data: bytes, /) -> int: ...  # noqa: D102
    def seek(self, offset: int, whence: int = 0, /) -> int: ...  # noqa: D102
    def tell(self) -> int: ...  # noqa: D102


def encode_timed(
    file: OutputFile,
    frames: Iterable[tuple[np.ndarray, tuple[int, int]]],
    clock: Fraction,
    kind: tuple[str, str, str, dict[str, str]],
    gop: int,
) -> None:
    """Encode a stream of frames.

    Args:
        frames: frames ``h w c`` uint8 RGB, with start and end (ticks of ``clock``).
        clock: duration of a tick (seconds).
        kind: container, codec, pixel format and options of the codec.
        gop: maximum number of frames from one keyframe to the next.
    """
    container_format, codec, pixels, options = kind
    if container_format == "mp4":
        frames = shorten_pauses(frames, _mp4_pause(clock))
    lengths: dict[int, int] = {}
    # No encoder tag: the bytes must not depend on the build.
    with av.open(file, mode="w", format=container_format, options={"fflags": "+bitexact"}) as container:
        added = container.add_stream(codec, options=options | {"flags": "+bitexact"})  # pyright: ignore[reportUnknownMemberType]
        stream = cast(VideoStream, added)
        stream.pix_fmt = pixels
        stream.time_base = stream.codec_context.time_base = clock
        stream.codec_context.gop_size = gop
        # Threads of the conversion from RGB; the default starts one per core for each clip.
        stream.codec_context.thread_count = 1
        if pixels.startswith("yuv"):
            # Tag the matrix that swscale converts RGB with, instead of leaving players to guess it from the size.
            stream.codec_context.colorspace = Colorspace.SMPTE170M
            stream.codec_context.color_range = ColorRange.MPEG

        def mux(packets: Iterable[VideoPacket]) -> None:
            for packet in packets:
                # Without a duration the container makes one up for the last frame.
                packet.duration = lengths.pop(packet.pts or 0, 1)
                container.mux(packet)  # pyright: ignore[reportUnknownMemberType]

        for pixels_of_frame, (start, end) in frames:
            if not lengths and not stream.codec_context.is_open:
                stream.height, stream.width = pixels_of_frame.shape[:2]
            lengths[start] = max(end - start, 1)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_of_frame), format="rgb24")
            frame.pts, frame.time_base = start, clock
            mux(encode_frame(stream, frame))
        mux(encode_frame(stream, None))


def encode_frame(stream: VideoStream, frame: av.VideoFrame | None) -> list[VideoPacket]:
    """Packets that an encoder returns for a frame; None flushes it."""
    return cast("list[VideoPacket]", stream.encode(frame))  # pyright: ignore[reportUnknownMemberType]


def mp4_kind(height: int, width: int, crf: int) -> tuple[str, str, str, dict[str, str]]:
    """Container, codec, pixel format and options for H.264 in mp4."""
    # x264 subsamples chroma only at even sizes.
    pixels = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    # One thread: the bytes must not depend on the number of cores. No macroblock tree: x264's reads uninitialized
    # memory, which changes the quality of whole frames.
    options = "threads=1:no-mbtree=1"
    return "mp4", "libx264", pixels, {"crf": str(crf), "preset": "veryfast", "x264-params": options}


def encode_png(frame: np.ndarray) -> bytes:
    """Encode a frame ``h w c`` uint8 RGB as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()
