"""Decoding by NVDEC, the video decoder of NVIDIA GPUs, through PyAV's build of FFmpeg.

FFmpeg demuxes, parses and orders as it does without a GPU; only the pictures are made by NVDEC. They are copied to main
memory, where their chroma is separated without loss. From there on they take the path of all other frames.
"""

import io
import socket
from fractions import Fraction
from functools import cache

import av
import av.error
import numpy as np
from av.codec.hwaccel import HWAccel, HWDeviceType
from av.video.reformatter import VideoReformatter

from vidvq.errors import JobStopped
from vidvq.video.container import VideoError
from vidvq.video.encode import encode_mp4
from vidvq.video.probe import VideoInfo
from vidvq.video.stream import one_line

# Largest difference from PyAV's frames, in levels of 255. The standards of the codecs define every bit of a picture.
TOLERANCE = 0
_CODECS = {"h264", "hevc", "vp9"}
# Pixel formats of FFmpeg's own decoders, and those of the same pictures from NVDEC.
_SURFACES = {"yuv420p": "nv12", "yuvj420p": "nv12", "yuv420p10le": "p010le"}
# Older versions lose the properties of frames in the copy to main memory.
_MIN_PYAV = 18
# Side of the picture that is decoded for a trial (pixels); NVDEC has a minimum of 144 for HEVC.
_TRIAL_SIDE = 256

# Codecs whose frames this process has compared with PyAV's.
_compared: set[str] = set()


def suits(info: VideoInfo) -> bool:
    """Whether NVDEC is tried on a video: H.264, HEVC or VP9, 4:2:0 with 8 or 10 bits, progressive, even sides.

    Its timeline comes from packets: one from decoding depends on which damage a decoder notices.
    """
    even = info.height % 2 == 0 and info.width % 2 == 0
    progressive = not info.is_interlaced
    return info.codec in _CODECS and info.pixel_format in _SURFACES and even and progressive and info.packets is None


@cache
def _open_once() -> "tuple[HWAccel, av.CodecContext]":
    return _open()


def accelerator() -> HWAccel:
    """The first GPU that this process sees. Its CUDA context is created once, and shared by all decoders.

    Raises:
        JobStopped: this process cannot use NVDEC.
    """
    return _open_once()[0]


def check_available() -> None:
    """Check that this process can use NVDEC, and release the GPU again.

    Raises:
        JobStopped: it cannot.
    """
    _open()


def _open() -> "tuple[HWAccel, av.CodecContext]":
    """The GPU, and an idle decoder that keeps its CUDA context."""
    if int(av.__version__.partition(".")[0]) < _MIN_PYAV:
        raise _unavailable(f"PyAV {av.__version__} is installed, version {_MIN_PYAV} or newer is needed")
    if all(each.device_type != HWDeviceType.cuda for each in av.Codec("h264", "r").hardware_configs or ()):
        raise _unavailable("this build of PyAV lacks it; the wheels on PyPI have it")
    found = HWAccel("cuda", options={"primary_ctx": "1"})
    try:
        idle = av.CodecContext.create("h264", "r", hwaccel=found)
        surface = _trial(found)
    except (av.error.FFmpegError, OSError) as error:
        raise _unavailable(f"FFmpeg cannot open an NVIDIA GPU: {one_line(error)}") from error
    if surface != _SURFACES["yuv420p"]:
        raise _unavailable("the driver's libnvcuvid.so.1 is missing, or too old for FFmpeg")
    return found, idle


def _trial(found: HWAccel) -> str:
    """Pixel format of a picture that is decoded for a trial; that of FFmpeg's own decoder if NVDEC does not work."""
    gray = np.full((1, _TRIAL_SIDE, _TRIAL_SIDE, 3), 128, np.uint8)
    media = io.BytesIO(encode_mp4(gray, (0,), Fraction(1, 25), crf=20))
    with av.open(media, mode="r", format="mov", hwaccel=found) as container:
        container.streams.video[0].thread_type = "NONE"
        return next(container.decode(video=0)).format.name


def _unavailable(detail: str) -> JobStopped:
    return JobStopped(f"{socket.gethostname()}: decoder=nvdec cannot be used; {detail}; set decoder=pyav")


class Download:
    """Conversion of the pictures of one video to the pixel format of FFmpeg's own decoders, without loss."""

    def __init__(self, info: VideoInfo) -> None:
        self._format, self._size = info.pixel_format, (info.height, info.width)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> tuple[av.VideoFrame, bool]:
        """Convert a frame; FFmpeg decodes itself what NVDEC does not support.

        Returns:
            The frame, and whether NVDEC has made it.

        Raises:
            VideoError: ``decode_error``, if the frame has another format or size, as after a change of the stream.
        """
        if frame.format.name == self._format:
            return frame, False
        # FFmpeg crops pictures in the memory of a GPU at the right and bottom only.
        if frame.format.name != _SURFACES[self._format] or (frame.height, frame.width) != self._size:
            raise VideoError("decode_error", f"NVDEC gave frames {frame.format.name} {frame.width}x{frame.height}")
        return self._reformatter.reformat(frame, format=self._format, threads=1), True


def is_compared(codec: str) -> bool:
    """Whether :func:`compare` has accepted frames of a codec in this process."""
    return codec in _compared


def compare(codec: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Compare frames from NVDEC with the same frames from PyAV.

    Args:
        codec: libav name of the codec.
        found, expected: frames ``t h w c`` uint8.

    Raises:
        JobStopped: a pixel differs by more than :data:`TOLERANCE`.
    """
    difference = int(np.abs(found.astype(np.int16) - expected).max())
    if difference > TOLERANCE:
        raise JobStopped(
            f"{socket.gethostname()}: {codec} frames from NVDEC differ from those of PyAV by up to {difference} of 255 "
            f"levels; the tolerance is {TOLERANCE}; set decoder=pyav"
        )
    _compared.add(codec)
