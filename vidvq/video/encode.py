"""Frames to files: H.264 in mp4, frame times kept, and PNG."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

# A sane clock for mp4 where the source has a coarse or an odd one.
_MAX_TICKS_PER_S = 1_000_000


def encode_mp4(frames: np.ndarray, pts: tuple[int, ...], time_base: Fraction, crf: int) -> bytes:
    """Encode a clip as H.264 in mp4; the first frame is the only keyframe. The same input gives the same bytes.

    Args:
        frames: ``t h w c`` uint8 RGB.
        pts: time of each frame in ticks of ``time_base``, ascending; shifted to start at 0.
        time_base: seconds per tick.
        crf: x264's quality, 0 (lossless) to 51.
    """
    buffer = io.BytesIO()
    with mp4_writer(buffer, frames.shape[1], frames.shape[2], time_base, crf, keyframe_every=len(frames)) as write:
        write(frames, pts)
    return buffer.getvalue()


@contextmanager
def mp4_writer(
    target: io.BytesIO | Path, height: int, width: int, time_base: Fraction, crf: int, keyframe_every: int = 48
) -> Iterator[Any]:
    """Open an mp4 for writing; yields ``write(frames: t h w c uint8, pts)``, to be called in order."""
    clock = time_base if time_base.denominator <= _MAX_TICKS_PER_S else Fraction(1, _MAX_TICKS_PER_S)
    with av.open(
        target if isinstance(target, io.BytesIO) else str(target),
        mode="w",
        format="mp4",
        options={"fflags": "+bitexact"},
    ) as container:
        # x264 subsamples colour only in even sizes.
        pixels = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        # One thread, no encoder tag: the bytes must not depend on the machine's cores.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "threads=1", "flags": "+bitexact"}
        stream = container.add_stream("libx264", options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        stream.time_base = stream.codec_context.time_base = clock
        stream.codec_context.gop_size = keyframe_every
        start: int | None = None

        def write(frames: Iterable[np.ndarray], pts: Iterable[int]) -> None:
            nonlocal start
            for pixels_rgb, tick in zip(frames, pts, strict=True):
                start = tick if start is None else start
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_rgb), format="rgb24")
                frame.pts, frame.time_base = round((tick - start) * time_base / clock), clock
                container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode(None))


def encode_png(frame: np.ndarray) -> bytes:
    """One ``h w c`` uint8 RGB frame as PNG; lossless."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()
