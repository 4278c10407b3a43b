"""An hour of video: it needs no more memory than a minute, and any second of it is decoded without the rest."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.model import VideoTokenizer

INLINE = "runtime.workers=0"
SETTINGS = "video.fps=5 video.short_side=64 video.multiple=8".split()
MINUTES = {"minute": 1, "hour": 60}


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """What a decoding in this process does: ``json`` for a sample looked at, ``codes`` for one read, ``group``."""
    seen: list[str] = []
    info, read, step = TokenLocation.read_info, TokenLocation.read, VideoTokenizer.decode_step
    monkeypatch.setattr(TokenLocation, "read_info", lambda *given: (seen.append("json"), info(*given))[1])
    monkeypatch.setattr(TokenLocation, "read", lambda *given: (seen.append("codes"), read(*given))[1])
    monkeypatch.setattr(VideoTokenizer, "decode_step", lambda *given: (seen.append("group"), step(*given))[1])
    return seen


@pytest.mark.parametrize("first", [0, 1000])
def test_a_moment_is_decoded_from_its_keyframe_on_and_no_other_sample_is_opened(
    first, steps, make_video, checkpoint_dir, tmp_path, vidvq
):
    pts = [first + index for index in range(90)]
    video = make_video(tmp_path / "long.mkv", 90, pts=pts, codec_options={"g": "10"})
    tokens, where = tmp_path / "tokens", ("--checkpoint", checkpoint_dir)
    settings = ["video.short_side=32", "video.multiple=8", "gop_frames=9", "items_per_shard=4", INLINE]
    assert vidvq("tokenize", video, make_video(tmp_path / "b.mp4", 9), *where, "--out", tokens, *settings).code == 0
    # The contact sheet decodes too.
    steps.clear()
    # Frame 50 and 51: from within the sixth sample, frames 45 to 53.
    begin = first / 25 + 2.001
    stretch = ("--source", video, "--from", begin, "--to", begin + 0.04, "--out", tmp_path / "out.npy")
    assert vidvq("decode", tokens, *where, *stretch).code == 0
    groups = (9 - 1) // read_tokenizer_card(tokens).temporal_factor + 1
    assert steps.count("codes") == 1 and steps.count("group") <= groups
    assert steps.count("json") == 2, "the video's first, for where its timeline begins, and the one that is decoded"


def peaks(command: list[object]) -> dict[str, int]:
    """Run ``vidvq``; the most memory that its own process (``job``) and its decoding process had, bytes."""
    arguments = [sys.executable, "-m", "vidvq", *map(str, command)]
    job = subprocess.Popen(arguments, stderr=subprocess.PIPE, env=os.environ | {"MALLOC_ARENA_MAX": "1"})
    found: dict[str, int] = {}
    while job.poll() is None:
        for process in (psutil.Process(job.pid), *psutil.Process(job.pid).children()):
            try:
                role = "decoder" if "vidvq.runtime.feed" in " ".join(process.cmdline()) else "job"
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue
            if "VmHWM" in status:
                high = int(status.partition("VmHWM:")[2].split()[0]) * 1024
                found[role] = max(found.get(role, 0), high)
        time.sleep(0.02)
    assert job.returncode == 0, job.stderr.read() if job.stderr else ""
    return found


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory, demo_videos) -> dict[str, Path]:
    """A minute and an hour of one real clip, over and over, its packets copied."""
    if not shutil.which("ffmpeg"):
        pytest.skip("the ffmpeg program is not installed")
    folder = tmp_path_factory.mktemp("long")
    made = {}
    for name, minutes in MINUTES.items():
        made[name] = folder / f"{name}.mp4"
        source = demo_videos / "train/carphone.mp4"
        loop = ["ffmpeg", "-v", "error", "-stream_loop", "-1", "-i", source, "-t", str(60 * minutes), "-c", "copy"]
        subprocess.run([*loop, made[name]], check=True)
    return made


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("gop", ["gop_frames=33", "gop_frames=null"])
def test_to_tokenize_an_hour_takes_a_tenth_more_memory_than_a_minute_at_most(
    gop, long_videos, checkpoint_dir, tmp_path
):
    found = {}
    for name, video in long_videos.items():
        job = ["tokenize", video, "--checkpoint", checkpoint_dir, "--out", tmp_path / name, gop, *SETTINGS, INLINE]
        found[name] = peaks(job)
        print(f"\n{gop}, {name}: {_text(found[name])}")
    assert sum(found["hour"].values()) < 1.1 * sum(found["minute"].values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_to_shard_a_longer_video_takes_the_memory_of_its_index_alone(long_videos, tmp_path):
    found = {}
    for name, video in long_videos.items():
        settings = [setting.replace("video.", "clip.") for setting in SETTINGS]
        found[name] = peaks(["shard", video, "--out", tmp_path / name, *settings, INLINE])["job"]
        print(f"\nshard, {name}: {found[name] / 2**20:.0f} MiB")
    frames = 59 * 60 * 30
    # What libav and the timeline hold of each frame; one picture of a clip at this size has 16,000 bytes.
    assert found["hour"] - found["minute"] < 500 * frames


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_of_an_hour_any_second_and_any_stretch_is_decoded_in_the_memory_of_one(
    long_videos, checkpoint_dir, tmp_path, vidvq, steps
):
    tokens, where, video = tmp_path / "tokens", ("--checkpoint", checkpoint_dir), long_videos["hour"]
    assert vidvq("tokenize", video, *where, "--out", tokens, *SETTINGS, INLINE).code == 0
    for second in (0, 1799, 3598):
        steps.clear()
        stretch = ("--source", video, "--from", second, "--to", second + 1)
        assert vidvq("decode", tokens, *where, *stretch, "--out", tmp_path / f"{second}.npy").code == 0
        assert steps.count("codes") <= 2 and steps.count("group") <= 2 * 9 and steps.count("json") <= 4
    found = {}
    for name, end in {"minute": 1800, "hour": 3600}.items():
        stretch = ["--source", video, "--from", end - 60 * MINUTES[name], "--to", end]
        found[name] = peaks(["decode", tokens, *where, *stretch, "--out", tmp_path / f"{name}.mp4"])["job"]
    print("\n" + "\n".join(f"decode, {name}: {peak / 2**20:.0f} MiB" for name, peak in found.items()))
    assert found["hour"] < 1.1 * found["minute"]


def _text(peak: dict[str, int]) -> str:
    return ", ".join(f"{role} {size / 2**20:.0f} MiB" for role, size in sorted(peak.items()))
