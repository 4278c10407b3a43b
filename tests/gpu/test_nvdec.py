"""NVDEC gives the frames of FFmpeg's own decoders. Needs an NVIDIA GPU, PyAV and the packages of `vidvq.video` only.

Run with `-s` for the rates and, where it fails, for what FFmpeg says.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import av.codec.hwaccel
import av.logging
import numpy as np
import pytest

from vidvq.errors import JobStopped
from vidvq.video import nvdec
from vidvq.video.decode import decoders_for, open_reader
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import VideoInfo, probe

pytestmark = pytest.mark.gpu

DEMO = Path(nvdec.__file__).parents[1] / "demo/videos"
FILES = sorted(path for path in DEMO.glob("*/*") if path.suffix in {".mp4", ".mkv", ".webm", ".avi"})
B_FRAMES = {"preset": "veryfast", "x264-params": "bframes=3:keyint=48"}
# name of the file: codec, its options, pixel format, height and width
MADE = {
    "b-frames.mp4": ("libx264", B_FRAMES, "yuv420p", 288, 352),
    "full-range.mp4": ("libx264", B_FRAMES, "yuvj420p", 288, 352),
    "cropped.mp4": ("libx264", B_FRAMES, "yuv420p", 270, 482),
    "hevc.mp4": ("libx265", {"preset": "veryfast", "x265-params": "log-level=0"}, "yuv420p", 288, 352),
    "hevc-ten-bit.mp4": ("libx265", {"preset": "veryfast", "x265-params": "log-level=0"}, "yuv420p10le", 288, 352),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, "yuv420p", 288, 352),
    # Not supported by NVDEC: FFmpeg decodes it itself.
    "small.mp4": ("libx264", B_FRAMES, "yuv420p", 16, 32),
    "intermediate.mp4": ("libx264", B_FRAMES, "yuv422p", 288, 352),
}
NUM_FRAMES = 60


def report() -> str:
    """What decides whether NVDEC works here."""
    smi = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used", "--format=csv,noheader"]
    libraries = "ldconfig -p | grep -E 'libcuda[.]|nvcuvid'; ls -l /usr/lib/*/libnvcuvid* /usr/lib64/libnvcuvid*"
    lines = [
        f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}, devices {av.codec.hwaccel.hwdevices_available()}",
        f"LD_LIBRARY_PATH={os.environ.get('LD_LIBRARY_PATH')} "
        f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')} "
        f"NVIDIA_DRIVER_CAPABILITIES={os.environ.get('NVIDIA_DRIVER_CAPABILITIES')}",
    ]
    for command in (smi, ["bash", "-c", libraries]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            lines.append((done.stdout + done.stderr)[:2000].strip())
        except (OSError, subprocess.TimeoutExpired) as error:
            lines.append(f"{command[0]}: {error}")
    return "\n".join(lines)


@pytest.fixture(scope="module", autouse=True)
def device() -> None:
    """Open the GPU; without one, skip, or fail with all that FFmpeg says if ``VIDVQ_REQUIRE_GPU=1``."""
    began = time.perf_counter()
    try:
        nvdec.accelerator()
    except JobStopped as error:
        if os.environ.get("VIDVQ_REQUIRE_GPU") != "1":
            pytest.skip(str(error))
        av.logging.set_level(av.logging.DEBUG)
        with av.logging.Capture(local=False) as said:
            try:
                nvdec.check_available()
            except JobStopped as again:
                print(again)
        log = "\n".join(f"{name}: {text.strip()}" for _, name, text in said[-60:])
        pytest.fail(f"{error}\n{report()}\n{log}")
    print(f"\n{report()}\nfirst opening {time.perf_counter() - began:.3f} s")


@pytest.fixture(autouse=True)
def compares_nothing_before(monkeypatch) -> None:
    monkeypatch.setattr(nvdec, "_compared", set())


def make(path: Path, num_frames: int, codec: str, options: dict[str, str], pix_fmt: str, h: int, w: int) -> Path:
    """Encode frames of a demo video, enlarged to ``h`` by ``w``."""
    source = DEMO / "train/carphone.mp4"
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = w, h, pix_fmt
        stream.codec_context.color_range = 2 if pix_fmt == "yuvj420p" else 1
        pictures = [frame.reformat(w, h, pix_fmt) for frame in islice(container.decode(video=0), 60)]
        for index in range(num_frames):
            # Forwards and backwards, so that the longest clips move on.
            turn = index % (2 * len(pictures) - 2)
            picture = pictures[min(turn, 2 * len(pictures) - 2 - turn)]
            picture.pts, picture.time_base, picture.pict_type = index, Fraction(1, 25), 0
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


def differences(path: Path, info: VideoInfo, short_side: int | None, indices: list[list[int]]) -> tuple[int, str]:
    """Largest difference of the two decoders over some reads, and the decoder that made the last frames."""
    size = fit_size(info.height, info.width, short_side, 1)
    on_gpu, pyav = (open_reader(path, info, size, name) for name in ("nvdec", "pyav"))
    largest = 0
    for read in indices:
        found, expected = on_gpu.read(read), pyav.read(read)
        gaps = np.abs(found.astype(np.int16) - expected).max(axis=(1, 2, 3))
        if gaps.any():
            print(f"{path.name}: frames {[index for index, gap in zip(read, gaps, strict=True) if gap]} differ: {gaps}")
        largest = max(largest, int(gaps.max()))
    return largest, on_gpu.decoder


def reads(num_frames: int) -> list[list[int]]:
    """All frames in one pass; then from other starts, which seek where that is possible."""
    last = num_frames - 1
    return [list(range(num_frames)), [last], [0, 1], list(range(last // 2, last // 2 + 5)), [3], [last - 1, last]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("short_side", [None, 96])
def test_demo_videos_are_decoded_alike(path, short_side):
    info = probe(path, Limits())
    if decoders_for(info, "nvdec") != ("nvdec",):
        pytest.skip(f"{info.codec} {info.pixel_format} is left to PyAV")
    largest, decoder = differences(path, info, short_side, reads(info.num_frames))
    print(f"{path.name} {info.codec} {info.width}x{info.height} {info.num_frames} frames: {decoder}, {largest} levels")
    assert (largest, decoder) == (nvdec.TOLERANCE, "nvdec")


@pytest.mark.parametrize("name", MADE)
def test_kinds_of_video_are_decoded_alike(tmp_path, name):
    path = make(tmp_path / name, NUM_FRAMES, *MADE[name])
    info = probe(path, Limits())
    assert info.num_frames == NUM_FRAMES
    largest, decoder = differences(path, info, None, reads(NUM_FRAMES)) if nvdec.suits(info) else (0, "pyav")
    print(f"{name} {info.codec} {info.pixel_format}: {decoder}, {largest} levels")
    assert largest == nvdec.TOLERANCE
    assert decoder == ("pyav" if name in {"small.mp4", "intermediate.mp4"} else "nvdec")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Iterator[Path]:
    options = {"preset": "superfast", "x264-params": "bframes=2:keyint=50"}
    yield make(tmp_path_factory.mktemp("large") / "large.mp4", 240, "libx264", options, "yuv420p", 1080, 1920)


@pytest.mark.parametrize("short_side", [256, None])
def test_rates_of_both_decoders(large, short_side):
    """Of a clip of 1080p, scaled or not."""
    info = probe(large, Limits())
    size = fit_size(info.height, info.width, short_side, 1)
    for decoder in ("pyav", "nvdec", "nvdec", "pyav"):
        began = time.perf_counter()
        reader = open_reader(large, info, size, decoder)
        reader.read([0])
        opened = time.perf_counter()
        for start in range(1, 201, 20):
            reader.read(range(start, start + 20))
        rate = 200 / (time.perf_counter() - opened)
        print(f"to {short_side}: {decoder} opens in {opened - began:.3f} s, {rate:.0f} frames/s, used {reader.decoder}")
    assert reader.decoder == "pyav"


def test_many_files_do_not_exhaust_the_gpu():
    """Each file opens a decoder, and closes it with its last frame."""
    path = DEMO / "train/carphone.mp4"
    info = probe(path, Limits())
    size = fit_size(info.height, info.width, None, 1)
    began = time.perf_counter()
    for _ in range(30):
        reader = open_reader(path, info, size, "nvdec")
        reader.read([0, 1])
        assert reader.decoder == "nvdec"
    print(f"30 files: {(time.perf_counter() - began) / 30:.3f} s each\n{report().splitlines()[2]}")
