"""Encoding and decoding with the ffmpeg program, for codecs that a build of PyAV lacks."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from vidvq.errors import UsageError

# A container that keeps packets as encoders return them.
_CONTAINER = "nut"


def has_encoder(name: str) -> bool:
    """Return whether there is an ffmpeg program with an encoder."""
    program = shutil.which("ffmpeg")
    if program is None:
        return False
    listed = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False).stdout
    return any(line.split()[1:2] == [name] for line in listed.splitlines())


def transcode(
    frames: np.ndarray, rate: str, encoder: str, options: Mapping[str, str]
) -> tuple[list[bytes], list[np.ndarray]]:
    """Encode a clip and decode it.

    Args:
        frames: frames ``t h w c`` uint8 RGB.
        rate: frame rate, a number or a fraction (frames per second).
        options: options of the encoder, by their names in FFmpeg.

    Returns:
        The packets, without stream headers, and the decoded frames ``h w c`` uint8 RGB.

    Raises:
        UsageError: ffmpeg fails.
    """
    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    settings = [text for name, value in options.items() for text in (f"-{name}", value)]
    with TemporaryDirectory() as folder:
        coded = Path(folder) / "coded"
        source = [*raw, "-video_size", f"{width}x{height}", "-framerate", rate, "-i", "pipe:0"]
        _run(*source, "-c:v", encoder, *settings, "-f", _CONTAINER, str(coded), given=np.ascontiguousarray(frames))
        with av.open(str(coded), format=_CONTAINER) as container:
            packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        pixels = _run("-f", _CONTAINER, "-i", str(coded), "-fps_mode", "passthrough", *raw, "pipe:1")
    size = height * width * 3
    decoded = np.frombuffer(pixels, np.uint8)[: len(pixels) // size * size]
    return packets, list(decoded.reshape(-1, height, width, 3))


def _run(*arguments: str, given: np.ndarray | None = None) -> bytes:
    program = [shutil.which("ffmpeg") or "ffmpeg", "-v", "error", "-threads", "1", *arguments]
    done = subprocess.run(
        program, input=given.tobytes() if given is not None else b"", capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"ffmpeg fails: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
