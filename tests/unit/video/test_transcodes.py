"""Real videos in other containers and codecs: every frame equals that of the ffmpeg program."""

import shutil
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

import vidvq
from tests.helpers.oddities import B_FRAMES, X264, by_ffmpeg, ffmpeg, opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed"),
]
NUM_FRAMES = 40
X265 = ("-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=none:keyint=20")
MPEG4 = ("-c:v", "mpeg4", "-q:v", "3", "-g", "12", "-bf", "2")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "3", "-g", "12", "-bf", "2")
VP8 = (
    "-c:v",
    "libvpx",
    "-b:v",
    "800k",
    "-g",
    "15",
    "-deadline",
    "realtime",
    "-auto-alt-ref",
    "1",
    "-lag-in-frames",
    "12",
)
VP9 = ("-c:v", "libvpx-vp9", "-b:v", "800k", "-g", "15", "-deadline", "realtime", "-cpu-used", "8")
AV1 = ("-c:v", "libaom-av1", "-b:v", "800k", "-g", "15", "-cpu-used", "8", "-lag-in-frames", "12")
FORMS: dict[str, tuple[str, ...]] = {
    "h264.mkv": (*X264, *B_FRAMES),
    "h264.avi": (*X264, *B_FRAMES),
    "h264.ts": (*X264, *B_FRAMES),
    "h264.flv": (*X264, *B_FRAMES),
    "h264-open.mov": (*X264, "-bf", "3", "-g", "15", "-x264-params", "open-gop=1"),
    "h264-fragments.mp4": (*X264, *B_FRAMES, "-movflags", "+frag_keyframe+empty_moov"),
    "h264.264": (*X264, *B_FRAMES),
    "h264-high10.mkv": ("-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-crf", "10", "-g", "15"),
    "hevc.mp4": X265,
    "hevc.ts": X265,
    "hevc.265": X265,
    "mpeg4.avi": MPEG4,
    "mpeg4.mp4": MPEG4,
    "mpeg4.nut": MPEG4,
    "mpeg2.mpg": MPEG2,
    "mpeg2.ts": MPEG2,
    "mpeg2.mxf": MPEG2,
    "mpeg1.mpg": ("-c:v", "mpeg1video", "-q:v", "3", "-r", "25", "-bf", "2"),
    "vp8.webm": VP8,
    "vp8.ivf": VP8,
    "vp9.webm": VP9,
    "vp9.mp4": VP9,
    "av1.mp4": AV1,
    "av1.mkv": AV1,
    "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "3"),
    "prores.mov": ("-c:v", "prores_ks"),
    "ffv1.mkv": ("-c:v", "ffv1"),
    "wmv2.wmv": ("-c:v", "wmv2", "-q:v", "3"),
    "flv1.flv": ("-c:v", "flv", "-q:v", "3"),
    "theora.ogv": ("-c:v", "libtheora", "-q:v", "8"),
    "gif.gif": (),
    "apng.apng": (),
}
DEMO = Path(vidvq.__file__).parent / "demo/videos"
SOURCES = sorted(path for path in DEMO.rglob("*") if path.suffix in {".mp4", ".mkv", ".avi", ".webm"})


def transcode(source: Path, folder: Path, name: str) -> Path:
    """The first frames of a video in another form."""
    rate = () if "-r" in FORMS[name] else ("-r", "25")
    some = ("-an", "-frames:v", NUM_FRAMES, "-vf", "scale=256:-2,setsar=1")
    ffmpeg("-i", source, *some, *rate, *FORMS[name], folder / name)
    return folder / name


def largest_difference(path: Path) -> tuple[int, float]:
    """Number of frames, and the largest mean difference of one to that of the ffmpeg program (levels of 0 to 255)."""
    info, read = opened(path)
    frames = read(0, info.num_frames)
    theirs = by_ffmpeg(path, *frames.shape[1:3], *(["bwdif=send_frame:auto:interlaced"] if info.is_interlaced else []))
    assert theirs.shape == frames.shape
    return len(frames), float(np.abs(frames.astype(int) - theirs).mean(axis=(1, 2, 3)).max())


@pytest.mark.parametrize(("name", "source"), list(zip(FORMS, cycle(SOURCES), strict=False)))
def test_every_frame_equals_ffmpegs(name, source, tmp_path):
    count, difference = largest_difference(transcode(source, tmp_path, name))
    # Versions of FFmpeg differ in how they round 10 bits to 8, by levels that sum up to nothing.
    assert count > NUM_FRAMES // 2 and difference < (0.7 if "high10" in name else 0.02)
