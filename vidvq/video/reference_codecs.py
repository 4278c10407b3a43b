"""Video codecs at constant quality, to compare with tokens at equal bits."""

import os
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from vidvq.errors import UsageError
from vidvq.video import ffmpeg_program
from vidvq.video.pictures import VideoPacket

CodecName = Literal["x264", "x265", "svtav1"]
# Scaling of chroma, the default of the ffmpeg program. That of PyAV is bilinear, and loses up to 5 dB at hard edges.
_CHROMA = "BICUBIC"
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
    """Check that PyAV, or else the ffmpeg program, has a codec.

    Raises:
        UsageError: neither has its encoder and decoder.
    """
    codec = CODECS[name]
    if not _in_pyav(codec) and not ffmpeg_program.has_encoder(codec.encoder):
        raise UsageError(
            f"codecs={name} needs {codec.encoder}, which neither this build of PyAV {av.__version__} nor an ffmpeg "
            f"program has; install ffmpeg with {codec.encoder}, or leave {name} out"
        )


def _in_pyav(codec: ReferenceCodec) -> bool:
    try:
        for name, mode in ((codec.encoder, "w"), (codec.decoder, "r")):
            av.Codec(name, cast(Literal["r", "w"], mode))
    except ValueError:
        return False
    return True


class EqualBitsSearch:
    """Encodes one clip with one codec at several qualities, each once.

    Args:
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
    """Encode and decode a clip, with keyframes at its start and at scene cuts only.

    Args:
        frames: frames ``t h w c`` uint8 RGB.
        crf: constant rate factor.

    Raises:
        UsageError: the encoder rejects the clip.
    """
    codec = CODECS[name]
    # SVT-AV1 writes its settings to stderr otherwise.
    os.environ.setdefault("SVT_LOG", "1")
    try:
        packets, decoded = (_by_pyav if _in_pyav(codec) else _by_program)(codec, frames, fps, crf)
    except (FFmpegError, ValueError) as error:
        height, width = frames.shape[1:3]
        raise UsageError(
            f"codecs={name}: {codec.encoder} rejects {len(frames)} frames of {width}x{height} ({error}); leave it out"
        ) from error
    if len(decoded) != len(frames):
        raise UsageError(f"codecs={name}: {len(frames)} frames went in and {len(decoded)} came out; leave {name} out")
    return CodedClip(crf, 8 * sum(_picture_bytes(codec, packet) for packet in packets), np.stack(decoded))


def _by_pyav(codec: ReferenceCodec, frames: np.ndarray, fps: float, crf: float) -> tuple[list[bytes], list[np.ndarray]]:
    encoder = _open_encoder(codec, frames, fps, crf)
    packets: list[VideoPacket] = []
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format=encoder.pix_fmt, interpolation=_CHROMA)
        frame.pts, frame.time_base = index, encoder.time_base
        packets += _encode(encoder, frame)
    packets += _encode(encoder, None)
    return [bytes(packet) for packet in packets], _decode(codec, packets, encoder.extradata)


def _by_program(
    codec: ReferenceCodec, frames: np.ndarray, fps: float, crf: float
) -> tuple[list[bytes], list[np.ndarray]]:
    options = {"pix_fmt": _pixel_format(frames), "g": str(len(frames))} | _options(codec, crf)
    return ffmpeg_program.transcode(frames, str(_rate(fps)), codec.encoder, options)


def _pixel_format(frames: np.ndarray) -> str:
    # Chroma is subsampled only at even sizes.
    return "yuv444p" if frames.shape[1] % 2 or frames.shape[2] % 2 else "yuv420p"


def _rate(fps: float) -> Fraction:
    return max(Fraction(fps or 25).limit_denominator(1001), Fraction(1, 1001))


def _options(codec: ReferenceCodec, crf: float) -> dict[str, str]:
    # Headers outside of the packets, as containers have them.
    return codec.options | {"crf": f"{crf:g}", "flags": "+global_header"}


def _open_encoder(codec: ReferenceCodec, frames: np.ndarray, fps: float, crf: float) -> VideoCodecContext:
    encoder = cast(VideoCodecContext, av.CodecContext.create(codec.encoder, "w"))
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt = _pixel_format(frames)
    encoder.framerate, encoder.time_base = _rate(fps), 1 / _rate(fps)
    encoder.gop_size = len(frames)
    encoder.thread_count = 1
    encoder.options = _options(codec, crf)
    with _scheduling_kept():
        encoder.open()
    return encoder


@contextmanager
def _scheduling_kept() -> Generator[None, None, None]:
    """Take back real-time scheduling, which SVT-AV1 gives its threads and the caller's if it runs as root.

    The caller's thread would keep it, and its child processes would inherit it: they run before all else on the
    machine, and may stop it.
    """
    before = _thread_policies()
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread, now in _thread_policies().items():
            if now != before.get(thread, policy):
                with suppress(ProcessLookupError):
                    os.sched_setscheduler(thread, policy, parameters)


def _thread_policies() -> dict[int, int]:
    found: dict[int, int] = {}
    for path in Path("/proc/self/task").iterdir():
        # The thread may have ended.
        with suppress(ProcessLookupError):
            found[int(path.name)] = os.sched_getscheduler(int(path.name))
    return found


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
    return [
        frame.to_ndarray(format="rgb24", interpolation=_CHROMA)
        for frame in sorted(found, key=lambda frame: frame.pts or 0)
    ]


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
