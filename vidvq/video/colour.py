"""Colour spaces of decoded frames, and refusal of those that cannot be converted to RGB."""

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from vidvq.video.container import VideoError
from vidvq.video.stream import one_line

# Enum values of libav: HDR transfer curves; matrices that are, or are treated as, BT.601; all matrices that swscale
# knows; full range.
_HDR = {16: "PQ", 18: "HLG"}
_BT601 = (2, 5, 6)
_KNOWN_MATRICES = (0, 1, *_BT601, 4, 7, 9)
_LIMITED, _FULL = 1, 2
_EXPANDED = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)
_MATRIX_NAMES = {
    8: "YCgCo",
    10: "BT.2020 constant luminance",
    11: "SMPTE ST 2085",
    12: "chromaticity-derived",
    13: "chromaticity-derived constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}


def refuse_unsupported(frame: VideoFrame) -> None:
    """Refuse a frame whose colours cannot be converted to correct RGB.

    Raises:
        VideoError: ``hdr`` or ``unsupported_colour``.
    """
    if frame.color_trc in _HDR:
        raise VideoError(
            "hdr", f"has {_HDR[frame.color_trc]} brightness; make it SDR first, by a tone map of your choice"
        )
    if frame.colorspace not in _KNOWN_MATRICES:
        try:
            VideoReformatter().reformat(frame, width=16, height=16, format="rgb24", threads=1)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise unsupported_colour(frame, error) from error


def unsupported_colour(frame: VideoFrame, error: Exception) -> VideoError:
    """The error for a frame that FFmpeg cannot convert to RGB."""
    matrix = _MATRIX_NAMES.get(frame.colorspace, frame.colorspace)
    detail = f"is {frame.format.name} with colour matrix {matrix}, which FFmpeg cannot convert to RGB"
    return VideoError("unsupported_colour", f"{detail}: {one_line(error)}")


def is_limited_gray(frame: VideoFrame) -> bool:
    """Whether a frame is gray and of limited range, which not every version of FFmpeg expands."""
    return frame.color_range == _LIMITED and frame.format.name.startswith(("gray", "ya"))


def expand_range(levels: np.ndarray) -> np.ndarray:
    """Expand uint8 levels from limited range, 16 to 235, to full range."""
    return _EXPANDED[levels]


def is_plain(frame: VideoFrame) -> bool:
    """Whether a frame is 8-bit, progressive, and limited-range BT.601 or untagged."""
    eight_bit = all(component.bits == 8 for component in frame.format.components)
    return eight_bit and not frame.interlaced_frame and frame.colorspace in _BT601 and frame.color_range != _FULL
