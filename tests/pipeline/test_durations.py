"""The time that a frame is shown for survives tokens and `vidvq decode`."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidvq.video.write import TimedFrame, VideoShape, write_frames

MILLISECOND = Fraction(1, 1000)


def frame_ends(path: Path) -> list[tuple[float, float]]:
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    spans = [(packet.pts, packet.duration, packet.time_base) for packet in packets]
    return sorted((float(pts * base), float((pts + duration) * base)) for pts, duration, base in spans)


@pytest.mark.parametrize("edges_ms", [(0, 500), (0, 40, 120, 160, 700)], ids=["one frame", "variable rate"])
def test_frames_are_shown_as_long_as_in_the_source(edges_ms, tmp_path, checkpoint_dir, vidvq):
    pixels = np.random.default_rng(0).integers(0, 256, (len(edges_ms) - 1, 32, 32, 3), dtype=np.uint8)
    spans = zip(pixels, edges_ms, edges_ms[1:], strict=False)
    frames = [TimedFrame(frame, start * MILLISECOND, end * MILLISECOND) for frame, start, end in spans]
    video = tmp_path / "v.mp4"
    write_frames(video, "mp4", frames, VideoShape(len(frames), 32, 32, MILLISECOND))
    job = ("tokenize", video, "--checkpoint", checkpoint_dir, "--out", tmp_path / "tokens", "video.short_side=32")
    assert vidvq(*job, "video.multiple=8", "gop_frames=null", "runtime.workers=0").code == 0
    decoded = tmp_path / "decoded.mp4"
    assert vidvq("decode", tmp_path / "tokens", "--checkpoint", checkpoint_dir, "--out", decoded).code == 0
    shown = [(frame.start, frame.end) for frame in frames]
    assert np.allclose(frame_ends(decoded), np.array(shown, dtype=float), atol=0.001)
