"""A gap in time makes no clips of one held picture, and no clip crosses it."""

import shutil
from pathlib import Path

import av
import pytest

from tests.helpers.oddities import remux
from vidvq.corpus.source import source_at
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_plan
from vidvq.shard.rows import PlannedClip
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.probe import probe_samples
from vidvq.video.limits import Limits
from vidvq.video.policy import VideoPolicy

SETTINGS = "clip.num_frames=9 clip.min_frames=5 clip.short_side=32 clip.fps=10 runtime.workers=0".split()
FRAMES, GAP_S = 40, 3600


@pytest.fixture
def paused(tmp_path, make_video) -> Path:
    """A video with a pause of an hour in the middle."""

    def pause(packets: list[av.Packet]) -> None:
        for packet in packets[FRAMES // 2 :]:
            assert packet.pts is not None and packet.dts is not None
            packet.pts += int(GAP_S / packet.time_base)
            packet.dts += int(GAP_S / packet.time_base)

    return remux(make_video(tmp_path / "a.mp4", FRAMES, codec_options={"bf": "0"}), tmp_path / "paused.mp4", pause)


def test_no_clip_is_of_one_held_picture(paused, tmp_path, vidvq):
    out = tmp_path / "out"
    job = ("shard", paused, "--out", out, *SETTINGS)
    assert vidvq(*job).code == 0
    rows = list(read_plan(out).rows(PlannedClip))
    assert 2 <= len(rows) <= 4
    clips = [info for path in sorted(out.glob("*.tar")) for _, _, info in read_clips(path)]
    assert all((info.pts[-1] - info.pts[0]) * info.seconds_per_tick < 2 for info in clips)
    assert clips[-1].pts[0] * clips[-1].seconds_per_tick >= GAP_S
    assert "max_gap_s" not in (out / "plan.json").read_text(), "plans of older versions have no such limit"
    ran = vidvq(*job, "limits.max_gap_s=null")
    assert ran.code == 2 and "limits.max_gap_s was absent, now null" in ran.error


def test_a_longer_gap_may_be_allowed(paused, tmp_path, vidvq):
    out = tmp_path / "out"
    settings = [*SETTINGS, "clip.fps=1", "limits.max_gap_s=7200"]
    assert vidvq("shard", paused, "--out", out, *settings, "filters.min_luma=1").code == 0
    assert len(list(read_plan(out).rows(PlannedClip))) >= GAP_S // 9


def test_a_stream_of_tokens_restarts_after_a_gap(paused):
    config = TokenizeConfig(video=VideoPolicy(fps=10), gop_frames=None)
    first, second = probe_samples(source_at(str(paused)), config)
    assert first.until_s < 2 and second.begin_s >= GAP_S
    assert first.num_frames + second.num_frames <= FRAMES
    (whole,) = probe_samples(source_at(str(paused)), TokenizeConfig(config.video, None, limits=Limits(max_gap_s=None)))
    assert whole.num_frames > GAP_S * 10


def test_a_side_is_scaled_up_to_the_limit_alone(make_video, tmp_path, vidvq):
    strip = make_video(tmp_path / "strip.mp4", 8, size=(8, 64))
    job = (
        "shard",
        strip,
        "--out",
        tmp_path / "out",
        "clip.num_frames=4",
        "clip.min_frames=4",
        "clip.short_side=32",
        "runtime.workers=0",
    )
    assert vidvq(*job, "limits.max_side=255").code == 1
    ran = vidvq(*job)
    assert ran.code == 2 and "limits.max_side was 255" in ran.error
    shutil.rmtree(tmp_path / "out")
    assert vidvq(*job).code == 0
    assert "max_side" not in (tmp_path / "out/plan.json").read_text(), "plans of older versions have no such limit"
