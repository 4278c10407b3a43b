"""Frames to files: H.264 in mp4, frame times kept, and PNG."""

import io
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
from PIL import Image

# A sane clock for mp4 where the source has a coarse or an odd one.
_MAX_TICKS_PER_S = 1_000_000


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
    count = len(frames)
    if count != len(pts) or not count:
        raise ValueError(f"{count} frames need as many times, and at least 1; got {len(pts)}")
    first, last = pts[0], pts[count - 1]
    clock = time_base if time_base.denominator <= _MAX_TICKS_PER_S else Fraction(1, _MAX_TICKS_PER_S)
    end = first + duration if duration else last + (last - pts[count - 2] if count > 1 else 1)
    times = [round((tick - first) * time_base / clock) for tick in (*pts, end)]
    lengths = {time: max(after - time, 1) for time, after in pairwise(times)}
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # One thread, no encoder tag: the bytes must not depend on the machine's cores.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "threads=1", "flags": "+bitexact"}
        stream = container.add_stream("libx264", options=options)
        stream.height, stream.width = frames.shape[1:3]
        # x264 subsamples colour only in even sizes.
        stream.pix_fmt = "yuv444p" if stream.height % 2 or stream.width % 2 else "yuv420p"
        stream.time_base = stream.codec_context.time_base = clock
        stream.codec_context.gop_size = count

        def mux(packets: Iterable[av.Packet]) -> None:
            for packet in packets:
                # Without it the container gives the last frame a length of its own.
                packet.duration = lengths[packet.pts or 0]
                container.mux(packet)

        for pixels, time in zip(frames, times, strict=False):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = time, clock
            mux(stream.encode(frame))
        mux(stream.encode(None))
    return buffer.getvalue()


def encode_png(frame: np.ndarray) -> bytes:
    """One ``h w c`` uint8 RGB frame as PNG; lossless."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()
