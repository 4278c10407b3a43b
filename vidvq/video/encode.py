"""Frames to files: H.264 in mp4 and FFV1 in matroska, frame times kept; npy; and PNG."""

import io
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import IO, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image

from vidvq.video.pictures import VideoPacket

# A sane clock for mp4 where the source has a coarse or an odd one.
_MAX_TICKS_PER_S = 1_000_000
# Container, codec, pixel format and options of what is kept without loss.
FFV1_KIND = ("matroska", "ffv1", "bgr0", {"level": "3", "slicecrc": "1", "threads": "1"})


def encode_mp4(
    frames: np.ndarray, pts: tuple[int, ...], time_base: Fraction, crf: int, duration: int | None = None
) -> bytes:
    """Encode a clip as H.264 in mp4; the first frame is the only keyframe. The same input gives the same bytes.

    Args:
        frames: ``t h w c`` uint8 RGB.
        pts: time of each frame in ticks of ``time_base``, ascending; shifted to start at 0.
        time_base: seconds per tick.
        crf: x264's quality, 0 (lossless) to 51.
        duration: ticks from the first frame to the end of the last; None lets the last be as long as the one before.
    """
    return _encode(frames, pts, time_base, duration, mp4_kind(frames.shape[1], frames.shape[2], crf))


def encode_ffv1(frames: np.ndarray, pts: tuple[int, ...], time_base: Fraction, duration: int | None = None) -> bytes:
    """Encode a clip without loss: FFV1 of the RGB values, in matroska. Arguments as for :func:`encode_mp4`."""
    return _encode(frames, pts, time_base, duration, FFV1_KIND)


def encode_npy(frames: np.ndarray) -> bytes:
    """A clip as ``t h w c`` uint8 RGB in an npy file."""
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
    """The time base that a file gets whose source has ``time_base``."""
    return time_base if time_base.denominator <= _MAX_TICKS_PER_S else Fraction(1, _MAX_TICKS_PER_S)


def encode_timed(
    file: IO[bytes],
    frames: Iterable[tuple[np.ndarray, tuple[int, int]]],
    clock: Fraction,
    kind: tuple[str, str, str, dict[str, str]],
    gop: int,
) -> None:
    """Encode frames as they come.

    Args:
        frames: ``h w c`` uint8 RGB, with when each starts and ends, ticks of ``clock``.
        kind: container, codec, pixel format and the codec's options.
        gop: the most frames from one keyframe to the next.
    """
    container_format, codec, pixels, options = kind
    lengths: dict[int, int] = {}
    # No tag of the encoder: the bytes must not depend on its build.
    with av.open(file, mode="w", format=container_format, options={"fflags": "+bitexact"}) as container:
        added = container.add_stream(codec, options=options | {"flags": "+bitexact"})  # pyright: ignore[reportUnknownMemberType]
        stream = cast(VideoStream, added)
        stream.pix_fmt = pixels
        stream.time_base = stream.codec_context.time_base = clock
        stream.codec_context.gop_size = gop
        # Of the conversion from RGB, which would start as many threads as there are cores for each clip.
        stream.codec_context.thread_count = 1
        if pixels.startswith("yuv"):
            # Said, not left to a player's guess from the size: what swscale makes of RGB.
            stream.codec_context.colorspace = Colorspace.SMPTE170M
            stream.codec_context.color_range = ColorRange.MPEG

        def mux(packets: Iterable[VideoPacket]) -> None:
            for packet in packets:
                # Without it the container gives the last frame a length of its own.
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
    """The packets that an encoder puts out for a frame; None for the end."""
    return cast("list[VideoPacket]", stream.encode(frame))  # pyright: ignore[reportUnknownMemberType]


def mp4_kind(height: int, width: int, crf: int) -> tuple[str, str, str, dict[str, str]]:
    """Container, codec, pixel format and options for H.264 in mp4."""
    # x264 subsamples colour only in even sizes.
    pixels = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    # One thread: the bytes must not depend on the machine's cores. And x264's macroblock tree reads memory that nobody
    # wrote, so that what lay there before decides on the quality of whole frames.
    options = "threads=1:no-mbtree=1"
    return "mp4", "libx264", pixels, {"crf": str(crf), "preset": "veryfast", "x264-params": options}


def encode_png(frame: np.ndarray) -> bytes:
    """One ``h w c`` uint8 RGB frame as PNG; lossless."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()
