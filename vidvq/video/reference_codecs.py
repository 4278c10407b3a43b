"""Video codecs at constant quality, which tokens are compared with at equal bits."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from vidvq.errors import UsageError
from vidvq.video.pictures import VideoPacket

CodecName = Literal["x264", "x265", "svtav1"]
_START_CODE = re.compile(b"\x00\x00\x00?\x01")


@dataclass(frozen=True)
class ReferenceCodec:
    """An encoder, its settings and the decoder of its bitstream.

    Attributes:
        encoder: name of the encoder in FFmpeg.
        decoder: name of the decoder in FFmpeg.
        crfs: qualities to search, best first.
        options: options of the encoder beside the quality.
        is_supplemental: whether a NAL unit, by its first byte, carries no picture, such as the encoder's settings as
            text; None for a bitstream without NAL units.
    """

    encoder: str
    decoder: str
    crfs: tuple[float, ...]
    options: dict[str, str]
    is_supplemental: Callable[[int], bool] | None


@dataclass(frozen=True)
class CodedClip:
    """A clip after a codec.

    Attributes:
        crf: constant rate factor.
        bits: size of all packets (bits), without container, stream headers and supplemental NAL units.
        frames: decoded frames ``t h w c`` uint8 RGB.
    """

    crf: float
    bits: int
    frames: np.ndarray


# One thread, so that a busy machine does not change the outcome. The presets are the encoders' usual compromises.
CODECS: dict[str, ReferenceCodec] = {
    "x264": ReferenceCodec(
        encoder="libx264",
        decoder="h264",
        crfs=tuple(step / 2 for step in range(0, 103)),
        options={"preset": "medium", "x264-params": "threads=1"},
        is_supplemental=lambda byte: byte & 31 == 6,
    ),
    "x265": ReferenceCodec(
        encoder="libx265",
        decoder="hevc",
        crfs=tuple(step / 2 for step in range(0, 103)),
        options={"preset": "medium", "x265-params": "log-level=none:pools=none:frame-threads=1"},
        is_supplemental=lambda byte: byte >> 1 & 63 in (39, 40),
    ),
    "svtav1": ReferenceCodec(
        encoder="libsvtav1",
        decoder="libdav1d",
        crfs=tuple(range(1, 64)),
        options={"preset": "6", "svtav1-params": "lp=1"},
        is_supplemental=None,
    ),
}


def check_codec(name: str) -> None:
    """Check that PyAV has the encoder and the decoder of a codec.

    Raises:
        UsageError: one is missing.
    """
    codec = CODECS[name]
    for each, mode in ((codec.encoder, "w"), (codec.decoder, "r")):
        try:
            av.Codec(each, cast(Literal["r", "w"], mode))
        except ValueError as error:
            raise UsageError(
                f"codecs={name} needs {each}, which this build of PyAV {av.__version__} lacks; leave {name} out"
            ) from error


class EqualBitsSearch:
    """Encodes one clip with one codec at several qualities, each once.

    Args:
        name: name of the codec.
        frames: frames ``t h w c`` uint8 RGB.
        fps: frame rate (frames per second); rate control depends on it.
    """

    def __init__(self, name: str, frames: np.ndarray, fps: float) -> None:
        self._name, self._frames, self._fps = name, frames, fps
        self._coded: dict[float, CodedClip] = {}

    def largest_within(self, bits: float) -> CodedClip:
        """Find the best quality whose size is at most ``bits``, by bisection; the worst quality if none is.

        Raises:
            UsageError: the encoder rejects the clip.
        """
        crfs = CODECS[self._name].crfs
        # The size falls with the CRF, but for small exceptions, which may hide a slightly better quality.
        low, high = 0, len(crfs) - 1
        while low < high:
            middle = (low + high) // 2
            if self._encode(crfs[middle]).bits <= bits:
                high = middle
            else:
                low = middle + 1
        return self._encode(crfs[low])

    def _encode(self, crf: float) -> CodedClip:
        if crf not in self._coded:
            self._coded[crf] = encode_at(self._name, self._frames, self._fps, crf)
        return self._coded[crf]


def encode_at(name: str, frames: np.ndarray, fps: float, crf: float) -> CodedClip:
    """Encode and decode a clip as one group of pictures.

    Args:
        name: name of the codec.
        frames: frames ``t h w c`` uint8 RGB.
        fps: frame rate (frames per second).
        crf: constant rate factor.

    Raises:
        UsageError: the encoder rejects the clip.
    """
    codec = CODECS[name]
    # SVT-AV1 writes its settings to stderr otherwise.
    os.environ.setdefault("SVT_LOG", "1")
    try:
        encoder = _open_encoder(codec, frames, fps, crf)
        packets: list[VideoPacket] = []
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format=encoder.pix_fmt)
            frame.pts, frame.time_base = index, encoder.time_base
            packets += _encode(encoder, frame)
        packets += _encode(encoder, None)
    except (FFmpegError, ValueError) as error:
        height, width = frames.shape[1:3]
        raise UsageError(
            f"codecs={name}: {codec.encoder} rejects {len(frames)} frames of {height}x{width} ({error}); leave it out"
        ) from error
    decoded = _decode(codec, packets, encoder.extradata)
    if len(decoded) != len(frames):
        raise UsageError(f"codecs={name}: {len(frames)} frames went in and {len(decoded)} came out; leave {name} out")
    return CodedClip(crf, 8 * sum(_picture_bytes(codec, bytes(packet)) for packet in packets), np.stack(decoded))


def _open_encoder(codec: ReferenceCodec, frames: np.ndarray, fps: float, crf: float) -> VideoCodecContext:
    encoder = cast(VideoCodecContext, av.CodecContext.create(codec.encoder, "w"))
    encoder.height, encoder.width = frames.shape[1:3]
    # Chroma is subsampled only at even sizes.
    odd = encoder.height % 2 or encoder.width % 2
    encoder.pix_fmt = "yuv444p" if odd else "yuv420p"
    rate = Fraction(fps or 25).limit_denominator(1001)
    encoder.framerate, encoder.time_base = rate, 1 / rate
    encoder.gop_size = len(frames)
    encoder.thread_count = 1
    # Headers outside of the packets, as containers have them.
    encoder.options = codec.options | {"crf": f"{crf:g}", "flags": "+global_header"}
    encoder.open()
    return encoder


def _encode(encoder: VideoCodecContext, frame: av.VideoFrame | None) -> list[VideoPacket]:
    """Packets that an encoder returns for a frame; None flushes it."""
    return cast("list[VideoPacket]", encoder.encode(frame))  # pyright: ignore[reportUnknownMemberType]


def _decode(codec: ReferenceCodec, packets: list[VideoPacket], headers: bytes | None) -> list[np.ndarray]:
    decoder = cast(VideoCodecContext, av.CodecContext.create(codec.decoder, "r"))
    decoder.extradata = headers
    decoder.thread_count = 1
    found: list[av.VideoFrame] = []
    for packet in (*packets, None):
        found += decoder.decode(packet)  # pyright: ignore[reportUnknownMemberType]
    return [frame.to_ndarray(format="rgb24") for frame in sorted(found, key=lambda frame: frame.pts or 0)]


def _picture_bytes(codec: ReferenceCodec, packet: bytes) -> int:
    """Size of a packet without supplemental NAL units."""
    if codec.is_supplemental is None:
        return len(packet)
    starts = [match.span() for match in _START_CODE.finditer(packet)]
    ends = [start for start, _ in starts[1:]] + [len(packet)]
    dropped = [
        end - start
        for (start, body), end in zip(starts, ends, strict=True)
        if body < len(packet) and codec.is_supplemental(packet[body])
    ]
    return len(packet) - sum(dropped)
