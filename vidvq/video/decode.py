"""Frames of a video: by decord, with PyAV as the fallback; and the clips that vidvq itself wrote, from memory."""

import io
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from math import floor
from pathlib import Path
from typing import Literal, Protocol

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation

from vidvq.video.container import VideoError, sniff
from vidvq.video.probe import VideoInfo, open_video

# decord polls its decoding thread so many times at the end of a file, then gives up. A count that a busy machine can
# use up makes the outcome a matter of timing, and so the bytes of a clip; what truly hangs meets the job's deadline.
# Set before its library loads.
os.environ["DECORD_EOF_RETRY_MAX"] = "1000000000"

# Frames may come out of order by as many as a codec's reorder buffer holds.
_REORDER_FRAMES = 32
# Demuxers that find the keyframe before a time; others are read from the start.
_SEEKABLE = ("mov", "matroska", "avi")

DecoderName = Literal["decord", "pyav"]


def decoders_for(info: VideoInfo) -> tuple[DecoderName, ...]:
    """Which decoders to try on a video, in order.

    decord 0.6.0 gives wrong frames after a seek, without an error, where groups of pictures are open or the demuxer
    does not find keyframes.
    """
    exact = info.codec != "hevc" and not info.open_groups and info.container.startswith(_SEEKABLE)
    return ("decord", "pyav") if exact else ("pyav",)


@dataclass(frozen=True)
class FrameSize:
    """Scale to ``scaled_height x scaled_width``, then crop the centre to ``height x width``. Pixels."""

    scaled_height: int
    scaled_width: int
    height: int
    width: int

    def crop(self, frames: np.ndarray) -> np.ndarray:
        """Crop the centre of ``t h w c`` frames."""
        top = (frames.shape[1] - self.height) // 2
        left = (frames.shape[2] - self.width) // 2
        return frames[:, top : top + self.height, left : left + self.width]


def fit_size(height: int, width: int, short_side: int | None, multiple: int) -> FrameSize:
    """The size that brings the short side to ``short_side`` (None: unchanged) and crops to a multiple.

    Raises:
        VideoError: ``too_small`` where not one multiple fits.
    """
    scale = Fraction(short_side, min(height, width)) if short_side else Fraction(1)
    scaled_height, scaled_width = max(round(height * scale), 1), max(round(width * scale), 1)
    cropped = scaled_height // multiple * multiple, scaled_width // multiple * multiple
    if 0 in cropped:
        raise VideoError("too_small", f"is {width}x{height} pixels; a side must be at least {multiple}")
    return FrameSize(scaled_height, scaled_width, *cropped)


def sample_timeline(info: VideoInfo, fps: float | None) -> tuple[list[int], list[int]]:
    """Which source frames make the video at ``fps``, by time and not by count.

    Returns:
        ``(frame indices, their pts)``: for ``fps=None`` every frame at its own time; else, for each tick of the new
        clock, the frame that is on screen then, so that variable frame rates come out right.
    """
    if fps is None:
        return list(range(info.num_frames)), list(info.pts)
    start, end = info.pts[0], info.pts[-1] + info.tick_per_frame
    step = 1 / (Fraction(fps).limit_denominator(100_000) * info.time_base)
    times = [
        start + floor(index * step + Fraction(1, 2)) for index in range(floor((end - start) / step + Fraction(1, 2)))
    ]
    return [max(bisect_right(info.pts, time) - 1, 0) for time in times], times


class FrameReader(Protocol):
    """Reads frames of one open video."""

    def read(self, indices: list[int]) -> np.ndarray:
        """Decode some frames.

        Args:
            indices: which frames, ascending; may repeat.

        Returns:
            ``t h w c`` uint8 RGB, scaled and cropped, one frame for each index.

        Raises:
            VideoError: ``decode_error``; a frame is missing or damaged.
        """
        ...


def open_reader(path: Path, info: VideoInfo, size: FrameSize, decoder: DecoderName) -> FrameReader:
    """Open a local video whose timeline :func:`vidvq.video.probe.probe` found.

    Raises:
        VideoError: ``decode_error``; the decoder cannot open it, or disagrees about the number of frames.
    """
    return _DecordReader(path, info, size) if decoder == "decord" else _PyAVReader(path, info, size)


def decoder_version(decoder: DecoderName) -> str:
    """``decord 0.6.0``: what is recorded with a clip."""
    return f"{decoder} {version('av' if decoder == 'pyav' else decoder)}"


def decode_clip(media: bytes, where: str) -> np.ndarray:
    """Decode a whole clip that vidvq wrote.

    Args:
        media: an mp4 in memory.
        where: names the clip in an error.

    Returns:
        ``t h w c`` uint8 RGB.

    Raises:
        VideoError: ``decode_error``; not an mp4, or damaged.
    """
    if sniff(media[:1024]) != "mov":
        raise VideoError("decode_error", f"{where} is not an mp4")
    try:
        with av.open(io.BytesIO(media), mode="r", format="mov") as container:
            if not container.streams.video:
                raise VideoError("decode_error", f"{where} has no video stream")
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("decode_error", f"{where}: {error}") from error
    if not frames:
        raise VideoError("decode_error", f"{where} has no frames")
    return np.stack(frames)


class _DecordReader:
    def __init__(self, path: Path, info: VideoInfo, size: FrameSize) -> None:
        try:
            import decord
        except ImportError as error:
            raise VideoError("decode_error", f"decord is not installed: {error}") from error
        self._size = size
        self._errors = (decord.DECORDError, RuntimeError)
        try:
            self._reader = decord.VideoReader(
                str(path.absolute()),
                ctx=decord.cpu(0),
                width=size.scaled_width,
                height=size.scaled_height,
                num_threads=1,
            )
        except self._errors as error:
            raise VideoError("decode_error", f"decord: {str(error).splitlines()[0]}") from error
        if len(self._reader) != info.num_frames:
            raise VideoError(
                "decode_error", f"decord counts {len(self._reader)} frames where the file has {info.num_frames}"
            )

    def read(self, indices: list[int]) -> np.ndarray:
        try:
            frames = self._reader.get_batch(indices).asnumpy()
        except self._errors as error:
            raise VideoError("decode_error", f"decord: {str(error).splitlines()[0]}") from error
        if frames.shape != (len(indices), self._size.scaled_height, self._size.scaled_width, 3):
            raise VideoError("decode_error", f"decord gave frames of shape {frames.shape}")
        return self._size.crop(frames)


class _PyAVReader:
    def __init__(self, path: Path, info: VideoInfo, size: FrameSize) -> None:
        self._path, self._info, self._size = path, info, size

    def read(self, indices: list[int]) -> np.ndarray:
        size, wanted = self._size, set(indices)
        found: dict[int, np.ndarray] = {}
        for index, frame in self._walk(indices[0]):
            if index in wanted and index not in found:
                scaled = frame.reformat(
                    width=size.scaled_width,
                    height=size.scaled_height,
                    format="rgb24",
                    interpolation=Interpolation.BICUBIC,
                )
                found[index] = scaled.to_ndarray()
            if len(found) == len(wanted) or index > indices[-1] + _REORDER_FRAMES:
                break
        missing = sorted(wanted - found.keys())
        if missing:
            raise VideoError(
                "decode_error", f"{len(missing)} of {len(wanted)} frames cannot be decoded (first: {missing[0]})"
            )
        return size.crop(np.stack([found[index] for index in indices]))

    def _walk(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        place = {tick: index for index, tick in enumerate(self._info.pts)}
        with open_video(self._path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            # Far enough back that the keyframe found is not one that is shown after the frame wanted.
            start = first - _REORDER_FRAMES
            if start > 0 and self._info.container.startswith(_SEEKABLE):
                container.seek(self._info.pts[start], stream=stream)
            index = -1
            try:
                for frame in container.decode(stream):
                    if frame.is_corrupt:
                        index += 1
                        continue
                    # A frame without a known time is the one after the last: AVI gives order, not times.
                    index = place.get(frame.pts if frame.pts is not None else -1, index + 1)
                    yield index, frame
            except av.error.FFmpegError as error:
                raise VideoError("decode_error", f"stops after frame {index}: {error}") from error
