"""The time that a frame is shown for survives tokens and `vidvq decode`."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidvq.video.encode import encode_ffv1
from vidvq.video.limits import Limits
from vidvq.video.probe import probe
from vidvq.video.sampling import clip_times
from vidvq.video.write import TimedFrame, VideoShape, write_frames

MILLISECOND = Fraction(1, 1000)


def frame_ends(path: Path) -> list[tuple[float, float]]:
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    spans = [(packet.pts, packet.duration, packet.time_base) for packet in packets]
    return sorted((float(pts * base), float((pts + duration) * base)) for pts, duration, base in spans)


def write(video: Path, edges_ms: tuple[int, ...]) -> list[tuple[float, float]]:
    """Write a video of random frames that end at given times; returns the interval of each frame (seconds)."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(edges_ms) - 1, 32, 32, 3), dtype=np.uint8)
    spans = zip(pixels, edges_ms, edges_ms[1:], strict=False)
    frames = [TimedFrame(frame, start * MILLISECOND, end * MILLISECOND) for frame, start, end in spans]
    if video.suffix == ".mkv":
        media = encode_ffv1(pixels, edges_ms[:-1], MILLISECOND, edges_ms[-1] - edges_ms[0])
        video.write_bytes(media)
    else:
        write_frames(video, video.suffix[1:], frames, VideoShape(len(frames), 32, 32, MILLISECOND))
    return [(float(frame.start), float(frame.end)) for frame in frames]


ONE, TWO, HELD, SHORT = (0, 500), (0, 40, 100), (0, 40, 120, 160, 700), (0, 40, 120, 160, 180)


@pytest.mark.parametrize("edges_ms", [ONE, TWO, HELD, SHORT], ids=["one frame", "two frames", "held", "short"])
@pytest.mark.parametrize("through", ["tokens", "clips and tokens"])
def test_frames_are_shown_as_long_as_in_the_source(edges_ms, through, tmp_path, checkpoint_dir, vidvq):
    source = tmp_path / "v.mp4"
    shown = write(source, edges_ms)
    settings = ["video.short_side=32", "video.multiple=8", "gop_frames=null"]
    if through != "tokens":
        clips = ("clip.num_frames=4", "clip.min_frames=1", "clip.short_side=32", "clip.multiple=8")
        assert vidvq("shard", source, "--out", tmp_path / "clips", *clips, "runtime.workers=0").code == 0
        source, settings = tmp_path / "clips", []
    job = ("tokenize", source, "--checkpoint", checkpoint_dir, "--out", tmp_path / "tokens", *settings)
    assert vidvq(*job, "runtime.workers=0").code == 0
    decoded = tmp_path / "decoded.mp4"
    assert vidvq("decode", tmp_path / "tokens", "--checkpoint", checkpoint_dir, "--out", decoded).code == 0
    assert np.allclose(frame_ends(decoded), np.array(shown), atol=0.001)


@pytest.mark.parametrize("edges_ms", [ONE, TWO, HELD, SHORT], ids=["one frame", "two frames", "held", "short"])
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.gif"])
def test_a_container_that_stores_durations_gives_that_of_the_last_frame(name, edges_ms, tmp_path):
    shown = write(tmp_path / name, edges_ms)
    info = probe(tmp_path / name, Limits())
    _, duration, _ = clip_times(info, info.pts, 0, info.num_frames)
    assert float(duration * info.time_base) == pytest.approx(shown[-1][1], abs=0.001)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_the_last_frame_of_a_constant_rate_lasts_as_long_as_the_others(name, tmp_path):
    write(tmp_path / name, (0, 40, 80, 120, 150))
    info = probe(tmp_path / name, Limits())
    assert float(clip_times(info, info.pts, 0, 4)[1] * info.time_base) == pytest.approx(0.16)
