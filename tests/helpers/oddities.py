"""Videos of odd kinds, made by the ffmpeg program or packet by packet. Frame ``i`` shows ``i`` as bars."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from vidvq.video.decode import open_reader
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import VideoInfo, probe

X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "10")
B_FRAMES = ("-bf", "3", "-b_strategy", "0", "-sc_threshold", "0", "-g", "20")


def ffmpeg(*arguments: object) -> bytes:
    """Run the program quietly; what it writes to ``-``."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def by_ffmpeg(path: Path, height: int, width: int, *filters: str) -> np.ndarray:
    """Every frame that the program puts out, ``t h w c`` uint8 RGB."""
    chain = ",".join([*filters, f"scale={width}:{height}:flags=bicubic", "format=rgb24"])
    raw = ffmpeg("-i", path, "-vf", chain, "-fps_mode", "passthrough", "-f", "rawvideo", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def shown(frames: np.ndarray) -> list[int]:
    """Which frames these are, by their bars."""
    bars = frames.reshape(*frames.shape[:2], 8, -1).mean(axis=(1, 3)) > 125
    return [int(index) for index in bars @ (1 << np.arange(8))]


def opened(path: Path) -> tuple[VideoInfo, Callable[[int, int], np.ndarray]]:
    """A video's timeline, and a function that reads some of its frames at their own size."""
    info = probe(path, Limits())
    reader = open_reader(path, info, fit_size(*info.shown_size, None, 1), "pyav")
    return info, lambda first, after: reader.read(range(first, after))


def remux(source: Path, target: Path, change: Callable[[list[av.Packet]], object], **options: str) -> Path:
    """The packets of a video in another file, changed."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as made:
        stream = given.streams.video[0]
        packets = [packet for packet in given.demux(stream) if packet.size]
        copy = made.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        change(packets)
        for packet in packets:
            packet.stream = copy
            made.mux(packet)
    return target


def damage(path: Path, first: int, count: int, seed: int = 1) -> None:
    """Noise in the place of some packets of a file."""
    noise = np.random.default_rng(seed)

    def change(packets: list[av.Packet]) -> None:
        for index in range(first, first + count):
            old = packets[index]
            made = av.Packet(noise.integers(0, 256, old.size, dtype=np.uint8).tobytes())
            made.pts, made.dts, made.duration, made.time_base = old.pts, old.dts, old.duration, old.time_base
            made.is_keyframe = old.is_keyframe
            packets[index] = made

    if path.suffix in (".mkv", ".webm"):  # where a packet is in the file is not known
        remux(path, path.with_name("damaged" + path.suffix), change).replace(path)
        return
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for place, size in places[first : first + count]:
        data[place : place + size] = noise.integers(0, 256, size, dtype=np.uint8).tobytes()
    path.write_bytes(data)


def pack(source: Path, target: Path) -> Path:
    """An MPEG-4 AVI with B-frames, each packed into the packet of the frame it comes behind, as XviD and DivX do."""
    mark = b"\x00\x00\x01\xb2DivX503b1393p"
    no_picture = b"\x00\x00\x01\xb6\x57\xff\xff"

    def change(packets: list[av.Packet]) -> None:
        kept = []
        pending: list[bytes] = []
        datas = [bytes(packet) for packet in packets]
        kinds = [data[data.find(b"\x00\x00\x01\xb6") + 4] >> 6 for data in datas]
        datas[0] = datas[0].replace(b"\x00\x00\x01\xb6", mark + b"\x00\x00\x01\xb6", 1)
        for index, data in enumerate(datas):
            if kinds[index] == 2 and pending:
                kept.append(no_picture if pending.pop() else data)
                continue
            if index + 1 < len(datas) and kinds[index + 1] == 2:
                kept.append(data + datas[index + 1])
                pending.append(b"x")
            else:
                kept.append(data)
        for index, (packet, data) in enumerate(zip(list(packets), kept, strict=True)):
            made = av.Packet(data)
            made.dts = made.pts = index
            made.time_base = packet.time_base
            made.is_keyframe = packet.is_keyframe
            packets[index] = made

    return remux(source, target, change)


class _Bits:
    """A bit stream of H.264 syntax elements."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def u(self, width: int, *values: int) -> "_Bits":
        for value in values:
            self.bits += [value >> place & 1 for place in reversed(range(width))]
        return self

    def ue(self, *values: int) -> "_Bits":
        for value in values:
            width = (value + 1).bit_length()
            self.u(2 * width - 1, value + 1)
        return self

    def align(self) -> "_Bits":
        return self.u(1, *[0] * (-len(self.bits) % 8))

    def unit(self, header: int) -> bytes:
        """A unit behind a start code, with the bytes that keep start codes out of it."""
        data, zeros = bytearray(), 0
        for byte in np.packbits(self.u(1, 1).align().bits).tolist():
            if zeros >= 2 and byte <= 3:
                data.append(3)
                zeros = 0
            data.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\x00\x00\x00\x01" + bytes([header]) + bytes(data)


def write_field_pictures(path: Path, num_frames: int, height: int = 64, width: int = 128) -> Path:
    """Raw H.264 of two field pictures a frame (PAFF), uncompressed, since no encoder at hand makes those."""
    across, down = width // 16, height // 32
    sequence = _Bits().u(8, 77, 0, 30).ue(0, 0, 0, 4, 1).u(1, 0).ue(across - 1, down - 1)
    sequence.u(1, 0, 0, 1, 0, 1).u(1, 0, 0, 0, 0, 1).u(32, 1, 50).u(1, 1, 0, 0, 0, 0)
    picture = _Bits().ue(0, 0).u(1, 0, 0).ue(0, 0, 0).u(1, 0).u(2, 0).ue(0, 0, 0).u(1, 1, 0, 0)
    stream = bytearray()
    for index in range(num_frames):
        stream += b"\x00\x00\x00\x01\x09\x10" + sequence.unit(0x67) if index == 0 else b"\x00\x00\x00\x01\x09\x10"
        stream += picture.unit(0x68) if index == 0 else b""
        bars = [220 if index >> bit & 1 else 30 for bit in range(8)]
        row = np.repeat(np.array(bars, np.uint8), width // 8)
        for bottom in (0, 1):
            first = not bottom
            bits = _Bits().ue(0, 7, 0).u(4, 0).u(1, 1, bottom)
            if first:
                bits.ue(index % 2)
            bits.u(8, bottom).u(1, *([0, 0] if first else [0])).ue(0, 1)
            for block in range(across * down):
                luma = np.tile(row[block % across * 16 :][:16], 16)
                bits.ue(25).align().u(8, *luma.tolist(), *[128] * 128)
            stream += (b"" if first else b"\x00\x00\x00\x01\x09\x10") + bits.unit(0x65 if first else 0x61)
    path.write_bytes(stream)
    return path
