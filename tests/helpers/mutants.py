"""Damaged and hostile videos, derived deterministically from real ones."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from vidvq.video.decode import decode_clip

# (name, codec, pixel format) of short real clips to start from.
_BASES = (
    ("h264.mp4", "libx264", "yuv420p"),
    ("mpeg4.avi", "mpeg4", "yuv420p"),
    ("vp8.webm", "libvpx", "yuv420p"),
    ("h264.mkv", "libx264", "yuv444p"),
    ("mpeg2.ts", "mpeg2video", "yuv420p"),
    ("flv1.flv", "flv", "yuv420p"),
    ("hevc.mp4", "libx265", "yuv420p"),
    ("mjpeg.mov", "mjpeg", "yuvj420p"),
)


def make_bases(folder: Path, sources: list[Path]) -> list[Path]:
    """Encode 24 frames of real video in eight containers and codecs, a few kB each."""
    bases = []
    for number, (name, codec, pixels) in enumerate(_BASES):
        source = sources[number % len(sources)]
        frames = decode_clip(source.read_bytes(), source.name)[: 24 * 2 : 2, ::3, ::3]
        frames = np.ascontiguousarray(frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2])
        with av.open(str(folder / name), "w") as container:
            options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
            stream = container.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        bases.append(folder / name)
    return bases


def make_mutants(folder: Path, bases: list[Path], count: int, url: str, seed: int = 0) -> None:
    """Write ``count`` files; those with references refer to ``url``."""
    dice = random.Random(seed)
    whole = {path: path.read_bytes() for path in bases}
    for number in range(count):
        kind, mutate = list(_KINDS.items())[number % len(_KINDS)]
        base = dice.choice(bases)
        data = mutate(dice, bytearray(whole[base]), whole[dice.choice(bases)], url)
        suffix = dice.choice((".mp4", ".mkv", ".avi", ".ts")) if kind == "misnamed" else base.suffix
        (folder / f"{number:05d}-{kind}{suffix}").write_bytes(data)


def _flips(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    for _ in range(dice.choice((1, 4, 32, 256))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return data


def _head_flips(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    for _ in range(dice.choice((1, 4, 16))):
        data[dice.randrange(min(len(data), 600))] = dice.randrange(256)
    return data


def _tail_flips(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    for _ in range(dice.choice((1, 4, 16))):
        data[-1 - dice.randrange(min(len(data), 1200))] = dice.randrange(256)
    return data


def _truncated(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    return data[: dice.randrange(len(data))]


def _holes(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    start = dice.randrange(len(data))
    length = dice.randrange(1, 2000)
    return data[:start] + (bytes(length) if dice.random() < 0.5 else b"") + data[start + length :]


def _spliced(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    return data[: dice.randrange(len(data))] + other[dice.randrange(len(other)) :]


def _doubled(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    return data * dice.randrange(2, 30)


def _misnamed(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    return data


def _huge_numbers(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    """Set sizes, counts, times and offsets in the index of an mp4 to their maximum or to negative values."""
    boxes = (b"tkhd", b"avc1", b"hev1", b"stts", b"stsz", b"stsc", b"stco", b"ctts", b"elst", b"mdhd", b"mvhd")
    found = [data.find(box) for box in boxes if data.find(box) > 0] or [min(40, len(data) - 60)]
    place = dice.choice(found) + dice.choice((4, 8, 12, 16, 20, 24, 28, 32))
    data[place : place + 4] = struct.pack(">I", dice.choice((0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x00FFFFFF, 0)))
    return data


def _playlist(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    text = dice.choice(
        (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}/a.ts\n",
            f"ffconcat version 1.0\nfile '{url}/b.mp4'\n",
            f"<?xml version='1.0'?><MPD><BaseURL>{url}/</BaseURL></MPD>",
            f"v=0\nc=IN IP4 127.0.0.1\nm=video 1234 RTP/AVP 96\na=control:{url}\n",
            f"RTSPtext\nrtsp{url[4:]}/c\n",
        )
    ).encode()
    return dice.choice((text, text + bytes(data), bytes(data[:40]) + text))


def _reference(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    """Make a data reference of an mp4 point to another file."""
    place = data.find(b"url \x00\x00\x00\x01")
    name = url.encode() + b"/d.mp4\0"
    if place > 0:
        data[place : place + 8] = b"url \x00\x00\x00\x00"
        data[place + 8 : place + 8 + len(name)] = name
    return data + name


def _noise(dice: random.Random, data: bytearray, other: bytes, url: str) -> bytes | bytearray:
    magic = dice.choice((data[:12], b"", b"\x1a\x45\xdf\xa3", b"\x47" + bytes(187), b"RIFF\xff\xff\xff\xffAVI "))
    return bytes(magic) + dice.randbytes(dice.randrange(0, 4000))


_KINDS: dict[str, Callable[[random.Random, bytearray, bytes, str], bytes | bytearray]] = {
    "flips": _flips,
    "head": _head_flips,
    "tail": _tail_flips,
    "truncated": _truncated,
    "holes": _holes,
    "spliced": _spliced,
    "doubled": _doubled,
    "misnamed": _misnamed,
    "numbers": _huge_numbers,
    "playlist": _playlist,
    "reference": _reference,
    "noise": _noise,
}
