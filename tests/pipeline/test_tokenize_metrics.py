"""Time accounting of a run: each second of a worker counts for one activity, and commits do not contain times."""

import json
import re
from dataclasses import replace

import pytest

from vidvq import log
from vidvq.formats.commit import Commit
from vidvq.jobs import timing
from vidvq.jobs.stage import Monitor, ShardResult
from vidvq.jobs.timing import Stopwatch, TimeAccounting
from vidvq.tokenize import TokenizeClips

COMMIT = Commit("tokens-000000.tar", "plan", "", 0, 1, (), (), stats={"frames": 100, "tokens": 800})


class Clock:
    """Wall time and CPU time of this thread, which advance by method calls."""

    def __init__(self, monkeypatch) -> None:
        self.wall = self.cpu = 0.0
        monkeypatch.setattr(timing, "monotonic", lambda: self.wall)
        monkeypatch.setattr(timing, "thread_time", lambda: self.cpu)

    def work(self, seconds: float) -> None:
        self.wall += seconds
        self.cpu += seconds

    def wait(self, seconds: float) -> None:
        self.wall += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_each_second_is_of_the_innermost_stage(clock):
    def frames():
        for _ in range(2):
            clock.wait(3)
            yield None

    stopwatch = Stopwatch(compute=("encode",))
    clock.work(100)  # in no stage
    with stopwatch.activity("write"):
        clock.wait(1)
        with stopwatch.activity("encode"):
            for _ in stopwatch.waiting("decode", frames()):
                clock.work(10)
                clock.wait(0.5)  # another process had the core
        clock.work(2)
    made = stopwatch.result(COMMIT)
    assert made.seconds == {"write": 3, "decode": 6, "encode": 20, "core": 1}
    assert made.alive_s == 130
    assert stopwatch.result(COMMIT).seconds == {}


def test_a_wait_for_the_gpu_is_encoding(clock):
    stopwatch = Stopwatch()
    with stopwatch.activity("encode"):
        clock.wait(4)
    assert stopwatch.result(COMMIT).seconds == {"encode": 4}


def test_the_account_says_what_starved(clock):
    run = TimeAccounting()
    clock.wait(10)  # both workers could begin after 4 seconds
    run.add(ShardResult(COMMIT, "one", 6, {"encode": 3, "decode": 3}))
    run.add(ShardResult(COMMIT, "two", 6, {"encode": 5, "decode": 1}))
    clock.wait(10)
    run.add(ShardResult(COMMIT, "one", 16, {"encode": 6, "decode": 4}))
    metrics = run.report(TokenizeClips, Monitor())
    assert (metrics.workers, metrics.start_s, metrics.wall_s, metrics.totals["frames"]) == (2, 4, 20, 300)
    # 32 seconds of two workers: 14 encoding, 8 waiting, and the second worker was left without a shard for 10.
    assert metrics.seconds == {"encode": 14, "decode": 8, "idle": 10}
    assert metrics.efficiency == round(14 / 32, 4)
    said = metrics.lines()
    assert said[0].startswith(
        "300 frames, 2400 tokens in 20.0 s by 2 workers: 15.0 frames/s, 120.0 tokens/s; workers started"
    )
    assert said[1].endswith(": 44% encoding, 31% waiting for a shard, 25% waiting for decoded frames")
    assert said[2].startswith("bottleneck: waiting for a shard; try smaller shards")
    assert len(replace(metrics, wall_s=9.9).lines()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_says_where_its_time_went(vidvq, clips_dir, checkpoint_dir, tmp_path, workers):
    out = tmp_path / "out"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, f"runtime.workers={workers}")
    ran = vidvq(*command, "quality.share=1")
    metrics = json.loads((out / "metrics.json").read_bytes())
    stats = json.loads((out / "summary.json").read_bytes())["stats"]
    assert (metrics["frames"], metrics["tokens"]) == (stats["frames"], stats["tokens"])
    assert 1 <= metrics["workers"] <= max(workers, 1)
    seconds = metrics["seconds"]
    assert all(seconds[name] > 0 for name in ("fetch", "decode", "encode", "score", "write"))
    alive = metrics["workers"] * (metrics["wall_s"] - metrics["start_s"])
    assert sum(seconds.values()) == pytest.approx(alive, abs=0.1)
    assert metrics["efficiency"] == pytest.approx(seconds["encode"] / sum(seconds.values()), abs=0.01)
    assert sum(book["tokens"] for book in metrics["codebooks"]) == stats["tokens"]
    assert "% encoding" in ran.err
    # A run that had nothing to do tells of none, and leaves the account of the one that had.
    assert "% encoding" not in vidvq(*command, "quality.share=1").err
    assert json.loads((out / "metrics.json").read_bytes()) == metrics
    assert vidvq("verify", out).code == 0


def test_the_report_shows_originals_beside_decoded_frames(vidvq, clips_dir, checkpoint_dir, tmp_path, make_video):
    video = make_video(tmp_path / "v.mp4", 20)
    raw = ("video.short_side=32", "video.multiple=8", "gop_frames=9")
    for name, *sources in (("clips", clips_dir), ("videos", video, *raw)):
        out = tmp_path / name
        where = ("--checkpoint", checkpoint_dir, "--out", out, "runtime.workers=0")
        assert vidvq("tokenize", *sources, *where).code == 0
        page = (out / "report.html").read_text()
        ok = json.loads((out / "summary.json").read_bytes())["ok"]
        assert page.count("data:image/jpeg;base64,") == min(ok, 6)
        assert page.count(" dB</figcaption>") == min(ok, 6)
        assert 'src="http' not in page and "<script" not in page


def test_thumbnails_are_made_once_and_their_pixels_are_limited(
    vidvq, clips_dir, checkpoint_dir, tmp_path, monkeypatch, snapshot
):
    monkeypatch.setattr("vidvq.tokenize.thumbnails._MAX_PIXELS", 1)
    out = tmp_path / "out"
    command = ("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, "runtime.workers=0")
    ran = vidvq(*command)
    assert ran.code == 0 and "thumbnails: 1 clip, " in ran.err
    assert (out / "report.html").read_text().count("data:image") == 1
    before = snapshot(out)
    ran = vidvq(*command)
    assert ran.code == 0 and "thumbnails" not in ran.err and snapshot(out) == before
    # A report that is lost, or of an earlier plan, is made again.
    report = out / "report.html"
    report.write_text(re.sub("Plan [0-9a-f]{12}", "Plan 000000000000", report.read_text()))
    assert vidvq(*command).code == 0 and snapshot(out) == before


def test_a_report_whose_originals_are_gone_has_no_pictures(vidvq, make_video, checkpoint_dir, tmp_path, monkeypatch):
    video = make_video(tmp_path / "v.mp4", 20)
    out = tmp_path / "out"
    monkeypatch.setattr("vidvq.tokenize.thumbnails._originals", lambda *_: None)
    settings = ("video.short_side=32", "video.multiple=8", "gop_frames=9", "runtime.workers=0")
    assert vidvq("tokenize", video, "--checkpoint", checkpoint_dir, "--out", out, *settings).code == 0
    assert "data:image" not in (out / "report.html").read_text()


def test_without_ray_the_clips_of_a_shard_are_counted_one_by_one(
    tmp_path, clips_dir, checkpoint_dir, monkeypatch, vidvq
):
    monkeypatch.setattr(log, "PLAIN_INTERVAL_S", -1.0)
    out = tmp_path / "out"
    ran = vidvq("tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", out, "runtime.workers=0")
    shown = [line.split()[1].rstrip(",") for line in ran.err.splitlines() if line.startswith("tokenize: ")]
    total = int(shown[-1].partition("/")[2])
    assert list(dict.fromkeys(shown)) == [f"{done}/{total}" for done in range(1, total + 1)]
    # What the run tells of itself follows its last line of progress.
    assert ran.err.rindex("tokenize: ") < ran.err.index("time of the workers: ")
