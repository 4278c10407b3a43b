"""Throughput of video readers and of `vidvq shard`, relative to the ffmpeg program on the same videos.

    python benchmarks/shard.py VIDEOS... [--fps 10] [--short-side 128] [--rounds 3] [--workers 2]

Readers decode, resample and scale, and are compared per codec and height; `vidvq shard` runs on all videos. Each round
runs everything once in sequence; the table shows medians over rounds of the ratio to ffmpeg in the same round. ffmpeg
processes one video at a time with its default number of threads; the readers run in one process per worker, one video
at a time. `vidvq shard` starts Ray in each round (about 5 seconds on two cores), so use videos that take ffmpeg at
least 30 seconds.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from vidvq.video.decode import decoders_for, open_reader
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import probe
from vidvq.video.sampling import sample_timeline

CLIP_FRAMES = 33
CRF = 17
READERS = ("pyav", "decord", "torchcodec")


def main() -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--fps", type=float, default=10)
    parser.add_argument("--short-side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if not shutil.which("ffmpeg"):
        sys.exit("the ffmpeg program is not installed; install it to compare with it")
    groups: dict[str, list[Path]] = defaultdict(list)
    frames: dict[str, int] = defaultdict(int)
    for video in options.videos:
        info = probe(video, Limits())
        lines = min((240, 480, 720, 1080, 2160), key=lambda usual: abs(usual - min(info.shown_size)))
        name = f"{info.codec}, about {lines} lines"
        groups[name].append(video)
        frames[name] += len(sample_timeline(info, options.fps)[0])
    print(f"{len(options.videos)} videos at {options.fps:g} fps, {options.workers} workers")
    for name, videos in groups.items():
        readers = {
            reader: partial(_read_all, reader, videos, options)
            for reader in READERS
            if _installed("av" if reader == "pyav" else reader)
        }
        baseline = partial(_ffmpeg, videos, options, encode=False)
        default = decoders_for(probe(videos[0], Limits()))[0]
        _print_table(
            f"decode, resample and scale: {name} (default: {default})",
            _measure(baseline, readers, options.rounds),
            frames[name],
        )
    whole: dict[str, Callable[[], None]] = {"vidvq shard": partial(_shard, options)}
    baseline = partial(_ffmpeg, options.videos, options, encode=True)
    _print_table("vidvq shard, complete command, h264", _measure(baseline, whole, options.rounds), sum(frames.values()))


def _measure(
    baseline: Callable[[], None], others: dict[str, Callable[[], None]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Measure median time (seconds) and median speed relative to the baseline, by name."""
    times: dict[str, list[float]] = {name: [] for name in ("ffmpeg", *others)}
    for _ in range(rounds):
        for name, run in {"ffmpeg": baseline, **others}.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {
        name: (
            statistics.median(seconds),
            statistics.median(base / own for base, own in zip(times["ffmpeg"], seconds, strict=True)),
        )
        for name, seconds in times.items()
    }


def _print_table(title: str, rows: dict[str, tuple[float, float]], frames: int) -> None:
    print(f"\n{title}\n{'':14}{'seconds':>9}{'frames/s':>10}{'of ffmpeg':>11}")
    for name, (seconds, share) in rows.items():
        print(f"{name:14}{seconds:9.2f}{frames / seconds:10.0f}{share:11.2f}")


def _ffmpeg(videos: list[Path], options: argparse.Namespace, encode: bool) -> None:
    side = options.short_side
    scale = f"fps={options.fps:g},scale='if(gt(iw,ih),-2,{side})':'if(gt(iw,ih),{side},-2)':flags=bicubic"
    for video in videos:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            command = ["ffmpeg", "-v", "error", "-y", "-i", str(video), "-an", "-vf", scale]
            if encode:
                command += [
                    "-c:v",
                    "libx264",
                    "-preset",
                    "veryfast",
                    "-crf",
                    str(CRF),
                    "-g",
                    str(CLIP_FRAMES),
                    file.name,
                ]
            else:
                command += ["-f", "null", "-"]
            subprocess.run(command, check=True)


def _read_all(reader: str, videos: list[Path], options: argparse.Namespace) -> None:
    with ProcessPoolExecutor(options.workers) as pool:
        list(
            pool.map(
                _read,
                videos,
                *([value] * len(videos) for value in (reader, options.fps, options.short_side)),
            )
        )


def _read(video: Path, reader: str, fps: float, short_side: int) -> None:
    info = probe(video, Limits())
    indices, _ = sample_timeline(info, fps)
    size = fit_size(*info.shown_size, short_side, 2)
    clips = [indices[start : start + CLIP_FRAMES] for start in range(0, len(indices), CLIP_FRAMES)]
    if reader == "torchcodec":
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
        from torchcodec.transforms import Resize  # pyright: ignore[reportMissingImports]

        resize = Resize((size.scaled_height, size.scaled_width))
        decoder = VideoDecoder(str(video), num_ffmpeg_threads=1, seek_mode="exact", transforms=[resize])
        for clip in clips:
            decoder.get_frames_at(clip)
        return
    opened = open_reader(video, info, size, "decord" if reader == "decord" else "pyav")
    for clip in clips:
        opened.read(clip)


def _shard(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"clip.fps={options.fps:g}",
            f"clip.short_side={options.short_side}",
            f"clip.crf={CRF}",
            "clip.min_frames=1",
        ]
        settings += [f"clip.num_frames={CLIP_FRAMES}", "filters.duplicates=false", f"runtime.workers={options.workers}"]
        command = [
            sys.executable,
            "-m",
            "vidvq",
            "shard",
            *map(str, options.videos),
            "--out",
            f"{folder}/out",
            *settings,
        ]
        subprocess.run(command, check=True, capture_output=True)


def _installed(name: str) -> bool:
    try:
        __import__(name)
    except (ImportError, RuntimeError, OSError):
        return False
    return True


if __name__ == "__main__":
    main()
