"""Kinds of videos that the trackers of other readers report as read wrongly, or not at all."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.oddities import B_FRAMES, X264, by_ffmpeg, ffmpeg, opened, shown
from vidvq.video import VideoError
from vidvq.video.limits import Limits
from vidvq.video.probe import probe

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")
ALL = list(range(60))
X265 = ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=20")
VP8 = ("-c:v", "libvpx", "-b:v", "500k")
PALETTE = ("-vf", "format=pal8", "-c:v", "rawvideo", "-pix_fmt", "pal8")
DROP = ("-vf", "select=not(between(n\\,20\\,25))", "-fps_mode", "passthrough")
KEY = "76a6c65c5ea762046bd749a2e632ccbb"
Build = Callable[[Path, Path], Path]


def encoded(name: str, *options: object) -> Build:
    def build(master: Path, folder: Path) -> Path:
        ffmpeg("-i", master, *options, folder / name)
        return folder / name

    return build


def trimmed(*codec: str) -> Build:
    """Cut without encoding, inside a group of pictures: an edit list leaves out the frames before the cut."""

    def build(master: Path, folder: Path) -> Path:
        ffmpeg("-i", master, *codec, folder / "whole.mp4")
        ffmpeg("-ss", "0.5", "-i", folder / "whole.mp4", "-c", "copy", folder / "v.mp4")
        return folder / "v.mp4"

    return build


def trimmed_by_less_than_a_frame(master: Path, folder: Path) -> Path:
    ffmpeg("-i", master, *X264, *B_FRAMES, folder / "v.mp4")
    data = bytearray((folder / "v.mp4").read_bytes())
    # Version, flags, number of edits and duration of the first, then where it begins.
    at = data.index(b"elst") + 16
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + 100).to_bytes(4, "big")
    (folder / "v.mp4").write_bytes(data)
    return folder / "v.mp4"


def edited(master: Path, folder: Path) -> Path:
    """Two edits, of which the first ends within a frame, and the second begins inside a group of pictures."""
    ffmpeg("-i", master, *X264, *B_FRAMES, folder / "v.mp4")
    data = bytearray((folder / "v.mp4").read_bytes())
    # Duration (ms), and where each begins (ticks of 1/12800 s, 512 of them a frame; frame 0 is at 1024).
    edits = struct.pack(">IIHHIIHH", 980, 1024 + 2 * 512, 1, 0, 800, 1024 + 29 * 512, 1, 0)
    at = data.index(b"edts") - 4
    made = struct.pack(">I4sI4sII", 24 + len(edits), b"edts", 16 + len(edits), b"elst", 0, 2) + edits
    moved = len(made) - int.from_bytes(data[at : at + 4], "big")
    for box in (data.index(b"moov") - 4, data.index(b"trak") - 4):
        data[box : box + 4] = (int.from_bytes(data[box : box + 4], "big") + moved).to_bytes(4, "big")
    data[at : at + len(made) - moved] = made
    (folder / "v.mp4").write_bytes(data)
    return folder / "v.mp4"


def changing(name: str, *codec: str, scale: str = "64:32", pix_fmt: str = "yuv420p") -> Build:
    """Thirty frames of 128x64 in 4:2:0, then thirty of another size or format, in one stream."""

    def build(master: Path, folder: Path) -> Path:
        parts = [folder / f"{part}{Path(name).suffix}" for part in ("one", "two")]
        forms = ("lt", "128:64", "yuv420p"), ("gte", scale, pix_fmt)
        for part, (half, size, form) in zip(parts, forms, strict=True):
            chain = f"select={half}(n\\,30),setpts=PTS-STARTPTS,scale={size},format={form}"
            ffmpeg("-i", master, "-vf", chain, *codec, part)
        (folder / "list").write_text("".join(f"file '{part}'\n" for part in parts))
        ffmpeg("-f", "concat", "-safe", "0", "-i", folder / "list", "-c", "copy", folder / name)
        return folder / name

    return build


def live(*codec: str) -> Build:
    """As a browser records: lengths are unknown, and there is no index."""

    def build(master: Path, folder: Path) -> Path:
        (folder / "v.webm").write_bytes(ffmpeg("-i", master, *codec, "-f", "webm", "-live", "1", "-"))
        return folder / "v.webm"

    return build


# Name -> how it is made, and the frames that come out.
KINDS: dict[str, tuple[Build, list[int]]] = {
    "trimmed-h264": (trimmed(*X264, *B_FRAMES), ALL[13:]),
    "trimmed-hevc": (trimmed(*X265), ALL[13:]),
    "trimmed-by-less-than-a-frame": (trimmed_by_less_than_a_frame, ALL[1:]),
    "two-edits": (edited, [*ALL[2:27], *ALL[29:49]]),
    "palette-avi": (encoded("v.avi", *PALETTE), ALL),
    "palette-mov": (encoded("v.mov", *PALETTE), ALL),
    "palette-qtrle": (encoded("v.mov", "-vf", "format=gray", "-c:v", "qtrle"), ALL),
    "every-packet-a-keyframe": (encoded("v.mov", "-c:v", "rpza"), ALL),
    "intra-refresh": (encoded("v.mkv", *X264, "-intra-refresh", "1", "-g", "58"), ALL),
    "size-changes-webm": (changing("v.webm", *VP8), ALL),
    "size-changes-mkv": (changing("v.mkv", *X264), ALL),
    "format-changes-ts": (changing("v.ts", *X264, scale="128:64", pix_fmt="yuv422p"), ALL),
    "live-webm": (live(*VP8, "-g", "20"), ALL),
    "clock-wraps-ts": (encoded("v.ts", *X264, *B_FRAMES, "-output_ts_offset", "95442"), ALL),
    "dropped-frames-avi": (
        encoded("v.avi", *DROP, "-c:v", "mpeg4", "-q:v", "2"),
        ALL[:20] + ALL[26:],
    ),
    # FFmpeg begins where the sound ends, before the frames that are not there.
    "dropped-frames-and-sound-avi": (
        encoded("v.avi", "-f", "lavfi", "-i", "sine=duration=0.9", *DROP, "-c:v", "mjpeg", "-q:v", "2"),
        ALL[:20] + ALL[26:],
    ),
    "no-index-mkv": (encoded("v.mkv", "-c:v", "vc2"), ALL),
    "interlaced-open-groups-mp4": (
        encoded(
            "v.mp4", "-vf", "setfield=tff", "-c:v", "mpeg4", "-q:v", "2", "-g", "6", "-bf", "1", "-flags", "+ildct"
        ),
        ALL,
    ),
    "cropped-mp4": (encoded("v.mp4", "-vf", "pad=128:70", *X264), ALL),
    "alpha-webm": (encoded("v.webm", "-vf", "format=yuva420p", "-c:v", "libvpx-vp9", "-b:v", "1M"), ALL),
    "alpha-prores": (encoded("v.mov", "-vf", "format=yuva444p10le", "-c:v", "prores_ks", "-profile:v", "4"), ALL),
    "timecode-mov": (encoded("v.mov", *X264, "-timecode", "00:00:10:00"), ALL),
    "short-groups-hevc": (encoded("v.mp4", "-c:v", "libx265", "-x265-params", "log-level=none:keyint=3"), ALL),
    "avif-sequence": (encoded("v.avif", "-c:v", "libaom-av1", "-cpu-used", "8", "-b:v", "300k"), ALL),
}


# Kinds much like another one here.
_ALIKE = {"trimmed-hevc", "palette-mov", "size-changes-mkv", "alpha-prores", "timecode-mov", "short-groups-hevc"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in _ALIKE else []) for kind in KINDS]
)
def test_every_frame_comes_wherever_reading_begins(kind, master, tmp_path):
    build, expected = KINDS[kind]
    path = build(master, tmp_path)
    info, read = opened(path)
    frames = read(0, info.num_frames)
    assert shown(frames) == expected
    if path.suffix != ".avif":  # the program sees the still picture alone, as some of its versions do
        theirs = by_ffmpeg(path, *frames.shape[1:3])
        assert np.abs(frames.astype(int) - theirs).mean(axis=(1, 2, 3)).max() < 0.5
    last = info.num_frames - 1
    for first in (last, 1, 2 * last // 3, last // 2):
        _, fresh = opened(path)
        assert np.array_equal(fresh(first, first + 1)[0], frames[first])
        assert np.array_equal(read(first, first + 1)[0], frames[first]), "backwards in an open file, too"


def test_an_encrypted_video_is_named_so(master, tmp_path):
    scheme = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", KEY, "-encryption_kid", KEY)
    ffmpeg("-i", master, *X264, *scheme, tmp_path / "v.mp4")
    with pytest.raises(VideoError, match="encrypted: has encrypted frames"):
        probe(tmp_path / "v.mp4", Limits())


def test_a_still_picture_in_a_container_of_videos_is_no_video(master, tmp_path):
    ffmpeg("-i", master, "-frames:v", 1, "-c:v", "libaom-av1", "-still-picture", 1, "-cpu-used", 8, tmp_path / "v.avif")
    with pytest.raises(VideoError, match="not_a_video"):
        probe(tmp_path / "v.avif", Limits())
