"""Decoding of frames of a video with PyAV, or decord or NVDEC where reliable, and of clips in memory."""

import io
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import av
import av.error
import numpy as np
from av.codec.hwaccel import HWAccel
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vidvq.formats.npy import read_npy
from vidvq.video import nvdec
from vidvq.video.colour import expand_range, is_limited_gray, unsupported_colour
from vidvq.video.container import VideoError, sniff
from vidvq.video.deinterlace import Numbered, deinterlace
from vidvq.video.geometry import FrameSize
from vidvq.video.packets import REORDER_FRAMES
from vidvq.video.probe import DecoderName, VideoInfo
from vidvq.video.stream import Decoded, decode, decoder_limits, open_video, video_stream

# Number of polls of decord's decoding thread at the end of a file. A low limit makes success, and so the bytes of a
# clip, depend on machine load; real hangs are caught by the deadline of the job. Must be set before the import.
os.environ["DECORD_EOF_RETRY_MAX"] = "1000000000"

# Number of unwanted frames to decode instead of seeking, which opens the file again.
_SKIP_FRAMES = 256
# Maximum size of the frames of one clip (bytes).
MAX_CLIP_BYTES = 4 << 30
_TOO_LARGE = f"the frames of a clip may take {MAX_CLIP_BYTES} bytes"
_NPY = b"\x93NUMPY"


def decoders_for(info: VideoInfo, preferred: DecoderName = "pyav") -> tuple[DecoderName, ...]:
    """Decoders to try on a video, in order.

    PyAV is correct and deterministic. decord 0.6.0 silently returns wrong frames after a seek if groups of pictures are
    open or the demuxer cannot seek to keyframes. It ignores rotation, colour range, matrix and interlacing. On a
    damaged file it fails non-deterministically, so that runs differ in which decoder made a clip.

    ``nvdec`` gives the frames of PyAV, and falls back to it by itself.
    """
    if preferred == "nvdec":
        return ("nvdec",) if nvdec.suits(info) else ("pyav",)
    exact = info.codec != "hevc" and not info.open_groups and bool(info.seek_points)
    return ("decord", "pyav") if preferred == "decord" and exact and info.is_plain else ("pyav",)


class FrameReader(Protocol):
    """Reads frames of one open video."""

    @property
    def decoder(self) -> DecoderName:
        """The decoder that made the last frames."""
        ...

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decode frames.

        Args:
            indices: indices of the frames, ascending; may repeat.

        Returns:
            Frames ``t h w c`` uint8 RGB, scaled and cropped, one per index.

        Raises:
            VideoError: ``decode_error``, if a frame is missing or damaged.
        """
        ...


def open_reader(path: Path, info: VideoInfo, size: FrameSize, decoder: DecoderName) -> FrameReader:
    """Open a local video for reading frames.

    Args:
        info: result of :func:`vidvq.video.probe.probe`.

    Raises:
        VideoError: ``decode_error``, if the decoder cannot open the video, or finds another number of frames.
        JobStopped: this process cannot use NVDEC.
    """
    if decoder == "nvdec":
        return _NvdecReader(path, info, size)
    return _DecordReader(path, info, size) if decoder == "decord" else _PyAVReader(path, info, size)


def first_decoded(info: VideoInfo, first: int) -> int:
    """Index of the frame at which decoding starts in order to reach frame ``first``: that of a keyframe, or 0."""
    # Far enough back that the keyframe is not shown after the wanted frame.
    before = bisect_right(info.seek_points, first - REORDER_FRAMES)
    return info.seek_points[before - 1] if before else 0


def decoder_version(decoder: DecoderName) -> str:
    """Name and version of a library, as recorded with a clip: ``decord 0.6.0``; PyAV decodes with NVDEC too."""
    return f"decord {version('decord')}" if decoder == "decord" else f"pyav {version('av')}"


def decode_clip(media: bytes, label: str, shape: tuple[int, int, int] | None = None) -> np.ndarray:
    """Decode a clip of a clip shard.

    Args:
        media: content of an mp4, Matroska or npy file.
        shape: number of frames, height and width in the clip's JSON; decoding ends at the first frame that differs.

    Returns:
        Frames ``t h w c`` uint8 RGB.

    Raises:
        VideoError: ``decode_error``, if the content is of another format or shape, or damaged; ``too_large``, if its
            frames take over :data:`MAX_CLIP_BYTES`.
    """
    if shape and math.prod(shape) * 3 > MAX_CLIP_BYTES:
        raise VideoError("too_large", f"{label} has {shape[0]} frames {shape[2]}x{shape[1]}; {_TOO_LARGE}")
    try:
        if media.startswith(_NPY):
            stored = read_npy(media)
            if stored.dtype != np.uint8 or stored.ndim != 4 or stored.shape[3] != 3:
                raise VideoError("decode_error", f"{label} has {stored.dtype} {stored.shape}, not t h w 3 of uint8")
            return stored.copy()
        container_format = sniff(media[:1024])
        if container_format not in {"mov", "matroska"}:
            raise VideoError("decode_error", f"{label} is not an mp4, mkv or npy file")
        options = decoder_limits(math.prod(shape[1:]) if shape else MAX_CLIP_BYTES // 3)
        with av.open(io.BytesIO(media), mode="r", format=container_format, options=options) as container:
            if not container.streams.video:
                raise VideoError("decode_error", f"{label} has no video stream")
            container.streams.video[0].thread_type = "NONE"
            container.streams.video[0].codec_context.options = options
            scaler, size = _Scaler(), 0
            frames: list[np.ndarray] = []
            for frame in container.decode(video=0):
                size += 3 * frame.width * frame.height
                if shape and (len(frames) == shape[0] or (frame.height, frame.width) != shape[1:]):
                    raise VideoError("decode_error", f"{label} has other frames than its JSON says: {shape}")
                if frames and (frame.height, frame.width) != frames[0].shape[:2]:
                    raise VideoError("decode_error", f"{label} has frames of several sizes")
                if size > MAX_CLIP_BYTES:
                    raise VideoError("too_large", f"{label} has more than {len(frames)} frames; {_TOO_LARGE}")
                frames.append(scaler.rgb(frame))
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        raise VideoError("decode_error", f"{label}: {error}") from error
    if not frames:
        raise VideoError("decode_error", f"{label} has no frames")
    return np.stack(frames)


class _Scaler:
    """Conversion of frames to RGB, shared by the frames of a video; PyAV's default starts threads for each frame."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def rgb(self, frame: av.VideoFrame, **size: int) -> np.ndarray:
        """Convert a frame to ``h w c`` uint8 RGB."""
        gray = is_limited_gray(frame)
        try:
            rgb = self._reformatter.reformat(
                frame,
                **size,
                format="rgb24",
                interpolation=Interpolation.BICUBIC,
                src_color_range=ColorRange.JPEG if gray else None,
                threads=1,
            ).to_ndarray()
        except (OSError, ValueError) as error:
            raise unsupported_colour(frame, error) from error
        return expand_range(rgb) if gray else rgb


class _DecordReader:
    decoder: DecoderName = "decord"

    def __init__(self, path: Path, info: VideoInfo, size: FrameSize) -> None:
        try:
            import decord  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise VideoError("decode_error", f"decord is not installed: {error}") from error
        self._size = size
        self._errors = (decord.DECORDError, RuntimeError)
        try:
            self._reader: Any = decord.VideoReader(
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

    def read(self, indices: Sequence[int]) -> np.ndarray:
        try:
            frames: np.ndarray = self._reader.get_batch(list(indices)).asnumpy()
        except self._errors as error:
            raise VideoError("decode_error", f"decord: {str(error).splitlines()[0]}") from error
        if frames.shape != (len(indices), self._size.scaled_height, self._size.scaled_width, 3):
            raise VideoError("decode_error", f"decord gave frames of shape {frames.shape}")
        return self._size.crop_or_pad(frames)


class _PyAVReader:
    """Reads forward without seeking if possible; keeps the frames of the last read for overlapping reads."""

    def __init__(self, path: Path, info: VideoInfo, size: FrameSize, accelerator: HWAccel | None = None) -> None:
        self._info, self._size = info, size
        self._shown = _ShownFrames(path, info, accelerator)
        self._frames: Iterator[Numbered] = iter(())
        self._next = info.num_frames  # lowest index that may still come
        self._ahead: Numbered | None = None
        self._last_read: dict[int, np.ndarray] = {}
        self._lost: set[int] = set()  # damaged or missing frames
        self._scaler = _Scaler()

    @property
    def decoder(self) -> DecoderName:
        return self._shown.decoder

    def read(self, indices: Sequence[int]) -> np.ndarray:
        wanted = set(indices)
        found = {index: frame for index, frame in self._last_read.items() if index in wanted}
        if unread := wanted - found.keys() - self._lost:
            self._go_to(min(unread))
            self._read(unread, found)
            self._last_read = found
        if missing := sorted(wanted - found.keys()):
            self._lost.update(missing)
            raise VideoError(
                "decode_error", f"{len(missing)} of {len(wanted)} frames cannot be decoded (first: {missing[0]})"
            )
        return self._size.crop_or_pad(np.stack([found[index] for index in indices]))

    def _go_to(self, first: int) -> None:
        # The next keyframe may be far after the wanted frame.
        if not (self._next <= first and self._shown.first_decoded(first) <= self._next + _SKIP_FRAMES):
            self._frames, self._ahead, self._next = self._shown.starting_at(first), None, 0

    def _read(self, wanted: set[int], found: dict[int, np.ndarray]) -> None:
        """Decode and scale the wanted frames; the first frame after them is kept for the next read."""
        last = max(wanted)
        while self._next <= last:
            numbered, self._ahead = self._ahead or next(self._frames, None), None
            if numbered is None or numbered[0] > last:
                # Wanted frames that have not come by now are missing.
                self._ahead, self._next = numbered, last + 1
                return
            index, frame = numbered
            self._next = index + 1
            if index in wanted and index not in found:
                found[index] = self._scale(frame)

    def _scale(self, frame: av.VideoFrame) -> np.ndarray:
        turned = self._info.quarter_turns % 2
        height, width = self._size.scaled_height, self._size.scaled_width
        scaled = self._scaler.rgb(frame, width=height if turned else width, height=width if turned else height)
        upright = np.rot90(scaled, self._info.quarter_turns)
        return upright[:, ::-1] if self._info.mirrored else upright


class _ShownFrames:
    """The frames of a video from any index on, as they are shown.

    A reader keeps a generator of them. It belongs to this object, not to the reader: the two would keep each other, and
    with them the open file and its decoder, until Python collects garbage.
    """

    def __init__(self, path: Path, info: VideoInfo, accelerator: HWAccel | None) -> None:
        self._path, self._info, self._accelerator = path, info, accelerator
        self._seeks = True
        self.decoder: DecoderName = "pyav"

    def first_decoded(self, first: int) -> int:
        """Index of the frame at which decoding starts in order to reach frame ``first``."""
        return first_decoded(self._info, first) if self._seeks else 0

    def starting_at(self, first: int) -> Iterator[Numbered]:
        try:
            yield from deinterlace(self._in_memory(self._start(first)))
        except av.error.FFmpegError as error:
            raise VideoError("decode_error", f"its interlaced frames cannot be made whole: {error}") from error

    def _in_memory(self, frames: Iterator[Numbered]) -> Iterator[Numbered]:
        if self._accelerator is None:
            yield from frames
            return
        download = nvdec.Download(self._info)
        for index, frame in frames:
            in_memory, from_nvdec = download(frame)
            self.decoder = "nvdec" if from_nvdec else "pyav"
            yield index, in_memory

    def _start(self, first: int) -> Iterator[Numbered]:
        """Yield the frames that match the timeline, in order; others are skipped."""
        if self.first_decoded(first):
            with open_video(self._path, self._info.max_pixels, self._accelerator) as container:
                stream = video_stream(container)
                frames = self._by_time(decode(container, stream), self._parts(stream))
                try:
                    container.seek(self._info.pts[first - REORDER_FRAMES] // self._parts(stream), stream=stream)
                    begun = next(frames, None)
                except av.error.FFmpegError:
                    # A Matroska file in which no frame is marked as a keyframe, nor is there an index.
                    begun = None
                if begun and begun[0] <= first and _decodes_alone(stream, begun[1]):
                    yield begun
                    yield from frames
                    return
            self._seeks = False
        with open_video(self._path, self._info.max_pixels, self._accelerator) as container:
            stream = video_stream(container)
            decoded = decode(container, stream, in_order=self._info.packets is not None)
            by_time = self._info.packets is None
            yield from self._by_time(decoded, self._parts(stream)) if by_time else self._by_order(decoded)

    def _parts(self, stream: VideoStream) -> int:
        """Number of ticks of the timeline in one of the file."""
        assert stream.time_base is not None
        return int(stream.time_base / self._info.time_base)

    def _by_order(self, decoded: Iterator[Decoded]) -> Iterator[Numbered]:
        assert self._info.packets is not None
        for index, one in enumerate(decoded):
            if index < self._info.num_frames and one.packet == self._info.packets[index] and one.frame:
                yield index, one.frame

    def _by_time(self, decoded: Iterator[Decoded], parts: int) -> Iterator[Numbered]:
        before, lost = -1, False
        for one in decoded:
            time = None if one.pts is None else one.pts * parts
            index = -1 if time is None else bisect_left(self._info.pts, time)
            known = index < self._info.num_frames and self._info.pts[index] == time
            if not one.frame or not known or index <= before:
                continue
            # The next frames may be predicted from a missing frame.
            lost = not one.frame.key_frame and (lost or 0 <= before < index - 1)
            before = index
            if not lost:
                yield index, one.frame


class _NvdecReader:
    """Reads with NVDEC up to the first error, and with PyAV from there on."""

    def __init__(self, path: Path, info: VideoInfo, size: FrameSize) -> None:
        self._pyav = partial(_PyAVReader, path, info, size)
        self._reader = self._pyav(nvdec.accelerator())
        self._codec = info.codec
        self._works = True

    @property
    def decoder(self) -> DecoderName:
        return self._reader.decoder

    def read(self, indices: Sequence[int]) -> np.ndarray:
        if not self._works:
            return self._reader.read(indices)
        try:
            frames = self._reader.read(indices)
        except VideoError:
            self._reader, self._works = self._pyav(), False
            return self._reader.read(indices)
        if self.decoder == "nvdec" and not nvdec.is_compared(self._codec):
            nvdec.compare(self._codec, frames, self._pyav().read(indices))
        return frames


def _decodes_alone(stream: VideoStream, frame: av.VideoFrame) -> bool:
    """Whether decoding may start at a frame after a seek.

    Some files mark every packet as a keyframe, or use gradual refresh; and a seek loses a palette that is stored only
    once.
    """
    return not frame.format.has_palette and bool(frame.key_frame or stream.codec_context.codec.intra_only)
