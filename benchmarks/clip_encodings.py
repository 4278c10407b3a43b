"""Encodings of clips: size, fidelity, and how fast one core decodes them.

    python benchmarks/clip_encodings.py VIDEOS... [--side 256] [--frames 33] [--rounds 5]

Cuts clips of the videos losslessly, encodes each as `vidvq shard` does, and decodes it as `vidvq tokenize` and
`vidvq train` do. Rates are of processor time, medians over rounds that take turns.
"""

import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median

import click
import numpy as np

from vidvq.cli.main import run
from vidvq.formats.clip_shard import read_clips
from vidvq.metrics.pixel import psnr
from vidvq.video.decode import decode_clip
from vidvq.video.encode import encode_ffv1, encode_mp4, encode_npy

CRF = 17
TIME_BASE = Fraction(1, 25)


def cut(videos: tuple[str, ...], side: int, num_frames: int) -> list[np.ndarray]:
    """Cut clips ``t h w c`` uint8."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"clip.num_frames={num_frames}", f"clip.size=[{side},{side}]", "clip.encoding=ffv1"]
        if code := run(["shard", *videos, "--out", folder, *settings, "runtime.workers=0"]):
            raise SystemExit(code)
        shards = sorted(Path(folder).glob("*.tar"))
        return [decode_clip(media, key) for shard in shards for key, media, _ in read_clips(shard)]


@click.command()
@click.argument("videos", nargs=-1, required=True)
@click.option("--side", default=256, show_default=True, help="Height and width of clips (pixels).")
@click.option("--frames", "num_frames", default=33, show_default=True, help="Frames of a clip.")
@click.option("--rounds", default=5, show_default=True)
def main(videos: tuple[str, ...], side: int, num_frames: int, rounds: int) -> None:
    """Measure the encodings on clips of VIDEOS."""
    clips = cut(videos, side, num_frames)
    total = sum(map(len, clips))
    kinds = {
        "h264": partial(encode_mp4, time_base=TIME_BASE, crf=CRF),
        "h264-fastdecode": partial(encode_mp4, time_base=TIME_BASE, crf=CRF, fast_decode=True),
        "ffv1": partial(encode_ffv1, time_base=TIME_BASE),
        "frames": lambda clip, pts: encode_npy(clip),
    }
    encoded = {name: [encode(clip, pts=tuple(range(len(clip)))) for clip in clips] for name, encode in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    fidelity: dict[str, float] = {}
    for _ in range(rounds):
        for name, media in encoded.items():
            started = time.process_time()
            decoded = [decode_clip(each, name) for each in media]
            seconds[name].append(time.process_time() - started)
            fidelity[name] = float(np.mean([psnr(*pair) for pair in zip(clips, decoded, strict=True)]))
    for name, media in encoded.items():
        kilobytes, rate = sum(map(len, media)) / 1e3 / total, total / median(seconds[name])
        print(f"{name:16} {kilobytes:8.2f} kB/frame {fidelity[name]:7.2f} dB {rate:8.0f} frames/s")


if __name__ == "__main__":
    main()
