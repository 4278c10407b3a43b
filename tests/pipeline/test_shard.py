"""`vidvq shard` end to end: reproducible bytes, and every input accounted for."""

import io
import json
import shutil
import sys
import tarfile
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest

from vidvq.corpus.source import Source
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import read_plan
from vidvq.runtime import InlinePool
from vidvq.shard import ShardConfig
from vidvq.shard.rows import PlannedClip
from vidvq.shard.worker import ClipShardWorker
from vidvq.video.decode import decode_clip
from vidvq.video.encode import encode_mp4

SETTINGS = "clip.num_frames=8 clip.min_frames=4 clip.short_side=32 clip.multiple=8 clips_per_shard=3".split()
INLINE = "runtime.workers=0"


def clips_of(folder: Path) -> list:
    return [clip for path in sorted(folder.glob("*.tar")) for clip in read_clips(path)]


def reasons(folder: Path) -> dict[str, list[str]]:
    """Reasons of failed and filtered items, by name of the input file."""
    found: dict[str, list[str]] = {}
    for name, rows in read_plan(folder).shards(PlannedClip):
        record = read_commit(folder, name)
        assert record
        uris = {row.key: Path(row.source.uri).name for row in rows}
        for outcome in (*record.failed, *record.filtered):
            found.setdefault(uris[outcome.key], []).append(outcome.reason)
    return found


@pytest.fixture
def hostile_corpus(tmp_path, demo_videos, make_video, make_audio) -> Path:
    """A corpus of one good video and many kinds of broken files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    make_video(folder / "good.mp4", 20)
    make_video(folder / "one-frame.mp4", 1)
    make_audio(folder / "sound.mp4")
    make_video(folder / "cut-index.mp4", 20)
    whole = (folder / "cut-index.mp4").read_bytes()
    (folder / "cut-index.mp4").write_bytes(whole[: len(whole) // 2])
    whole = (demo_videos / "train/carphone.mp4").read_bytes()
    (folder / "cut-tail.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("once upon a time\n" * 100)
    (folder / "playlist.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/x.ts\n")
    (folder / "notes.txt").write_text("not by suffix")
    return folder


def check_hostile(out: Path) -> None:
    found = reasons(out)
    tail = found.pop("cut-tail.mp4")
    assert "truncated" in tail and set(tail) == {"truncated", "decode_error"}
    assert found.pop("cut-index.mp4")[0] in {"unreadable", "no_video_stream"}
    assert found == {
        "one-frame.mp4": ["too_short"],
        "sound.mp4": ["no_video_stream"],
        "empty.mp4": ["empty_file"],
        "text.mp4": ["not_a_video"],
        "playlist.mp4": ["not_a_video"],
    }
    clips = clips_of(out)
    good = [info.num_frames for _, _, info in clips if info.source.endswith("/good.mp4")]
    assert good == [8, 8, 4]
    rescued = [key for key, media, info in clips if len(decode_clip(media, key)) == info.num_frames]
    assert len(rescued) == len(clips) > 8, "what is there of the cut file is there whole"


def test_a_corpus_of_broken_files_is_sharded_and_each_is_reported(hostile_corpus, tmp_path, vidvq):
    out = tmp_path / "out"
    ran = vidvq("shard", hostile_corpus, "--out", out, "--json", *SETTINGS, INLINE)
    assert ran.code == 1
    check_hostile(out)
    for name in ("sound.mp4", "empty.mp4", "text.mp4", "playlist.mp4", "cut-tail.mp4", "cut-index.mp4"):
        assert f"{hostile_corpus / name}: " in ran.err
    assert "max_failed=0" in ran.err and "Traceback" not in ran.err
    account = json.loads(ran.out)
    lost = sum(reason["count"] for verdict in ("failed", "filtered") for reason in account[verdict].values())
    assert account["planned"] == account["ok"] + lost
    assert vidvq("verify", out).code == 0


def test_exit_code_is_0_if_failures_stay_below_the_threshold(hostile_corpus, tmp_path, vidvq):
    assert vidvq("shard", hostile_corpus, "--out", tmp_path / "out", *SETTINGS, INLINE, "max_failed=1").code == 0


def test_ray_workers_write_the_same_bytes(hostile_corpus, tmp_path, vidvq, snapshot):
    inline, ray = tmp_path / "inline", tmp_path / "ray"
    assert vidvq("shard", hostile_corpus, "--out", inline, *SETTINGS, INLINE).code == 1
    ran = vidvq("shard", hostile_corpus, "--out", ray, "--json", *SETTINGS, "runtime.workers=2")
    assert ran.code == 1 and ran.out, ran.err
    assert json.loads(ran.out)["planned"] > 0, "nothing but the result is on stdout"
    assert snapshot(ray) == snapshot(inline)


def test_frames_of_a_clip_match_its_times(tmp_path, make_video, vidvq):
    """Includes reordered frames and open groups of pictures."""
    options = {"x264-params": "bframes=3:b-adapt=0:keyint=12:scenecut=0:open-gop=1", "crf": "5"}
    for name in ("a.mp4", "b.mkv", "c.ts"):
        make_video(tmp_path / name, 60, codec_options=options)
    out = tmp_path / "out"
    settings = "clip.num_frames=7 clip.min_frames=4 clip.short_side=null clip.crf=5 clips_per_shard=2".split()
    assert vidvq("shard", tmp_path, "--out", out, *settings, INLINE).code == 0
    seen: dict[str, list[int]] = {}
    for key, media, info in clips_of(out):
        bars = decode_clip(media, key).reshape(info.num_frames, info.height, 8, -1).mean(axis=(1, 3)) > 125
        shown = [int(index) for index in bars @ (1 << np.arange(8))]
        assert shown == list(range(info.clip_index * 7, info.clip_index * 7 + info.num_frames)), key
        seen.setdefault(info.source, []).extend(shown)
    assert all(frames == list(range(60)) for frames in seen.values()) and len(seen) == 3


def test_clips_keep_variable_frame_times(demo_videos, tmp_path, vidvq):
    source = demo_videos / "train/phone.mkv"
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * frame.time_base for frame in container.decode(stream) if frame.pts is not None]
    out = tmp_path / "out"
    assert vidvq("shard", source, "--out", out, *SETTINGS, "clip.stride=5", INLINE).code == 0
    for _, media, info in clips_of(out):
        first = info.clip_index * 5
        expected = times[first : first + info.num_frames]
        assert [tick * info.seconds_per_tick for tick in info.pts] == expected
        with av.open(io.BytesIO(media)) as container:
            stream = container.streams.video[0]
            written = [frame.pts * frame.time_base for frame in container.decode(stream) if frame.pts is not None]
        assert written == [time - expected[0] for time in expected]


def test_the_json_of_a_clip_describes_its_source(clips_dir, demo_videos):
    (key, _, info), *_ = clips_of(clips_dir)
    assert key.startswith("carphone-")
    assert info.source == (demo_videos / "train/carphone.mp4").absolute().as_posix()
    assert (info.height, info.width, info.num_frames, info.policy["num_frames"]) == (32, 40, 9, 9), (
        "its pixels are not square"
    )
    assert info.decoder.split()[0] in {"decord", "pyav"}
    assert abs(info.fps - 29.97) < 0.01


def test_a_source_that_changes_after_planning_fails_with_that_reason(tmp_path, make_video, vidvq):
    video = make_video(tmp_path / "v.mp4", 16)
    out = tmp_path / "out"
    assert vidvq("shard", video, "--out", out, *SETTINGS, INLINE, "clips_per_shard=1").code == 0
    for path in (out / "clips-000001.tar", out / "commits/clips-000001.tar.json"):
        path.unlink()
    stat = video.stat()
    from vidvq.shard import ShardConfig
    from vidvq.shard.cut import CutJob, cut_clips

    rows = list(read_plan(out).rows(PlannedClip))
    video.write_bytes(video.read_bytes() + b"\0")
    (cut,) = cut_clips(CutJob((rows[1],), ShardConfig())).cuts
    assert (cut.key, cut.files, cut.verdict, cut.reason) == (rows[1].key, None, "failed", "changed_since_plan")
    ran = vidvq("shard", video, "--out", out, *SETTINGS, INLINE, "clips_per_shard=1")
    assert ran.code == 2
    assert f"{video} was changed" in ran.error and f"inputs.bytes was {stat.st_size}" in ran.error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["clip.num_frames=8"], "clip.num_frames was 9, now 8"),
        (["clip.fps=5"], "clip.fps was null, now 5"),
        (["clips_per_shard=5"], "clips_per_shard was 4, now 5"),
        (["limits.max_frames=1000"], "limits.max_frames was 1080000, now 1000"),
    ],
)
def test_other_settings_for_the_same_directory_are_refused(
    clips_dir, demo_videos, tiny_settings, copy_of, snapshot, vidvq, change, said
):
    out = copy_of(clips_dir)
    arguments = ["shard", demo_videos / "train/carphone.mp4", "--out", out, *tiny_settings, INLINE, *change]
    ran = vidvq(*arguments)
    assert ran.code == 2 and said in ran.error
    assert snapshot(out) == snapshot(clips_dir)


def test_other_inputs_for_the_same_directory_are_refused(clips_dir, demo_videos, tiny_settings, copy_of, vidvq):
    out = copy_of(clips_dir)
    ran = vidvq("shard", demo_videos / "train/portrait_man.mp4", "--out", out, *tiny_settings, INLINE)
    assert ran.code == 2
    assert "portrait_man.mp4 was added" in ran.error and "carphone.mp4 was removed" in ran.error


@pytest.mark.parametrize(
    ("setting", "reason"), [("filters.min_motion=0.5", "static"), ("filters.min_luma=0.99", "too_dark")]
)
def test_clips_below_a_threshold_are_left_out(tmp_path, make_video, vidvq, setting, reason):
    video, out = make_video(tmp_path / "a.mp4", 8), tmp_path / "out"
    assert vidvq("shard", video, "--out", out, *SETTINGS, INLINE, setting).code == 0
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["filtered"].keys() == {reason} and summary["ok"] == 0


def test_a_foreign_directory_is_refused_and_unchanged(demo_videos, tmp_path, vidvq):
    (tmp_path / "thesis.tex").write_text("mine")
    ran = vidvq("shard", demo_videos / "train/carphone.mp4", "--out", tmp_path, INLINE)
    assert ran.code == 2 and "found thesis.tex" in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_video_named_like_an_option_is_found_in_its_directory(tmp_path, make_video, vidvq):
    folder = tmp_path / "corpus"
    folder.mkdir()
    make_video(tmp_path / "x.mp4", 8).rename(folder / "--out=x -i.mp4")
    assert vidvq("shard", folder, "--out", tmp_path / "out", *SETTINGS, INLINE).code == 0
    assert len(clips_of(tmp_path / "out")) == 1


def test_a_list_selects_ranges_and_carried_columns(tmp_path, make_video, vidvq):
    make_video(tmp_path / "v.mp4", 50)
    lines = (
        "path,start_s,end_s,caption",
        "v.mp4,0.4,0.8,first",
        "v.mp4,1.0,,last",
        "v.mp4,9,10,never",
        "v.mp4,one,,text",
    )
    (tmp_path / "list.csv").write_text("\n".join(lines))
    out = tmp_path / "out"
    ran = vidvq("shard", tmp_path / "list.csv", "--out", out, *SETTINGS, INLINE, "lists.carry=[caption]")
    assert ran.code == 1 and "failed bad_range: 2" in ran.err
    assert "v.mp4: has start_s 'one'; needs seconds or HH:MM:SS.mmm" in ran.err
    clips = [(info.carried["caption"], info.pts[0], info.num_frames) for _, _, info in clips_of(out)]
    step = clips_of(out)[0][2].pts[1] - clips_of(out)[0][2].pts[0]
    assert [(caption, first // step, count) for caption, first, count in clips] == [
        ("first", 10, 8),
        ("last", 25, 8),
        ("last", 33, 8),
        ("last", 41, 8),
    ], "0.4 s to 0.8 s is frames 10 to 19; nothing outside of a range"


def test_no_clip_crosses_a_shot_boundary(tmp_path, demo_videos, vidvq):
    names = ("train/carphone.mp4", "heldout/bikes.mp4")
    parts = [decode_clip((demo_videos / name).read_bytes(), name)[:30] for name in names]
    height, width = (min(part.shape[axis] for part in parts) // 2 * 2 for axis in (1, 2))
    frames = np.concatenate([part[:, :height, :width] for part in (parts[0], parts[1], parts[0][:20])])
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    out = tmp_path / "out"
    assert vidvq("shard", tmp_path / "v.mp4", "--out", out, *SETTINGS, INLINE, "cut.kind=shots").code == 0
    infos = [info for _, _, info in clips_of(out)]
    step = infos[0].pts[1] - infos[0].pts[0]
    spans = [(info.pts[0] // step, info.pts[-1] // step) for info in infos]
    assert all(first // 30 == last // 30 for first, last in spans), spans
    assert {first // 30 for first, _ in spans} == {0, 1, 2} and 30 in {first for first, _ in spans}
    longer = tmp_path / "longer"  # a shot of 30 frames, 1.2 s, is too short
    ran = vidvq("shard", tmp_path / "v.mp4", "--out", longer, *SETTINGS, INLINE, "cut.kind=shots", "cut.min_shot_s=2")
    spans = [(info.pts[0] // step, info.pts[-1] // step) for _, _, info in clips_of(longer)]
    assert ran.code == 0 and 60 in {first for first, _ in spans}
    assert any(first < 30 <= last for first, last in spans) and not any(first < 60 <= last for first, last in spans)
    windows = tmp_path / "windows"
    assert vidvq("shard", tmp_path / "v.mp4", "--out", windows, *SETTINGS, INLINE).code == 0
    crossing = [info for _, _, info in clips_of(windows) if info.pts[0] // step // 30 != info.pts[-1] // step // 30]
    assert crossing, "windows cross them: the test can tell"


def test_small_and_duplicate_sources_are_filtered(tmp_path, make_video, vidvq):
    make_video(tmp_path / "a.mp4", 8)
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    make_video(tmp_path / "c.mp4", 8, size=(16, 32))
    out = tmp_path / "out"
    assert vidvq("shard", tmp_path, "--out", out, *SETTINGS, INLINE, "filters.min_side=20").code == 0
    assert reasons(out) == {"b.mp4": ["duplicate"], "c.mp4": ["too_small"]}


def test_videos_in_a_tar_are_sharded_like_files(tmp_path, make_video, vidvq):
    (tmp_path / "v").mkdir()
    for name in ("a", "b"):
        make_video(tmp_path / f"v/{name}.mp4", 16 if name == "a" else 12)
    with tarfile.open(tmp_path / "wds.tar", "w") as tar:
        for name in ("a", "b"):
            tar.add(tmp_path / f"v/{name}.mp4", f"{name}.mp4")
            (tmp_path / "caption.json").write_text(json.dumps({"caption": f"of {name}"}))
            tar.add(tmp_path / "caption.json", f"{name}.json")
    assert vidvq("shard", tmp_path / "v", "--out", tmp_path / "o1", *SETTINGS, INLINE).code == 0
    ran = vidvq("shard", tmp_path / "wds.tar", "--out", tmp_path / "o2", *SETTINGS, INLINE, "lists.carry=[caption]")
    assert ran.code == 0, ran.err
    files, members = clips_of(tmp_path / "o1"), clips_of(tmp_path / "o2")
    assert [media for _, media, _ in files] == [media for _, media, _ in members]
    assert {info.carried["caption"] for _, _, info in members} == {"of a", "of b"}


def test_a_dry_run_predicts_the_run_and_writes_nothing(hostile_corpus, tmp_path, snapshot, vidvq):
    before = snapshot(tmp_path)
    ran = vidvq("shard", hostile_corpus, "--out", tmp_path / "out", "--dry-run", "--json", *SETTINGS, INLINE)
    assert ran.code == 0 and snapshot(tmp_path) == before
    told = json.loads(ran.out)
    vidvq("shard", hostile_corpus, "--out", tmp_path / "out", *SETTINGS, INLINE)
    summary = json.loads((tmp_path / "out/summary.json").read_bytes())
    assert (told["inputs"], told["probed"]) == (8, 8)
    assert told["items"] == summary["ok"] + summary["failed"]["decode_error"]["count"]
    assert told["shards"] == read_plan(tmp_path / "out").num_shards
    assert told["left_out"]["not_a_video"] == 2 and told["seconds"] > 0
    assert 0.5 < told["bytes"] / summary["bytes"] < 2


def test_a_dry_run_refuses_what_the_run_refuses(make_video, tmp_path, vidvq, monkeypatch):
    make_video(tmp_path / "a.mp4", 10)
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    for more in ((), ("--dry-run",)):
        ran = vidvq("shard", tmp_path / "a.mp4", "--out", tmp_path / "out", "cut.kind=shots", INLINE, *more)
        assert (ran.code, "needs PySceneDetect" in ran.error) == (2, True)


def test_a_dry_run_samples_all_of_the_list(tmp_path, vidvq):
    noise = np.random.default_rng(0)
    # Twice as many as it makes: large videos after small ones, and then duplicates, which are left out.
    for folder, size in (("a", (32, 64)), ("b", (128, 256))):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for number in range(8):
            frames = noise.integers(0, 256, (4, *size, 3)).astype(np.uint8)
            video = encode_mp4(frames, (0, 1, 2, 3), Fraction(1, 25), 18)
            (tmp_path / "in" / folder / f"{number}.mp4").write_bytes(video)
    whole = ("clip.num_frames=4", "clip.min_frames=4", "clip.short_side=null", "clip.multiple=1", "clip.encoding=copy")
    for copy in "cd":
        shutil.copytree(tmp_path / "in/a", tmp_path / "in" / copy)
    job = ("shard", tmp_path / "in", "--out", tmp_path / "out", *whole, INLINE)
    told = json.loads(vidvq(*job, "--dry-run", "--json").out)
    made = json.loads(vidvq(*job, "--json").out)
    assert (told["items"], told["sampled"]) == (made["ok"], 8)
    assert told["bytes"] == pytest.approx(made["bytes"], rel=0.2)


def test_a_dry_run_counts_a_long_video_by_its_length(tmp_path, vidvq):
    noise = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(13):
        frames = noise.integers(0, 256, (4, 128, 256, 3)).astype(np.uint8)
        if number == 5:
            frames = np.zeros((160, 128, 256, 3), np.uint8)
        video = encode_mp4(frames, range(len(frames)), Fraction(1, 25), 18)
        (tmp_path / f"in/{number:02}.mp4").write_bytes(video)
    job = ("shard", tmp_path / "in", "--out", tmp_path / "out", "clip.num_frames=4", "clip.min_frames=4", INLINE)
    told = json.loads(vidvq(*job, "--dry-run", "--json").out)
    made = json.loads(vidvq(*job, "--json").out)
    assert (told["items"], told["sampled"]) == (made["ok"], 15)
    assert told["bytes"] == pytest.approx(made["bytes"], rel=0.3)


def test_a_dry_run_of_what_cannot_be_cut_says_so(tmp_path, vidvq):
    (tmp_path / "empty.mp4").touch()
    ran = vidvq("shard", tmp_path / "empty.mp4", "--out", tmp_path / "out", INLINE, "--dry-run", "--json")
    told = json.loads(ran.out)
    assert (ran.code, told["items"], told["left_out"], told["seconds"]) == (0, 0, {"empty_file": 1}, None)


def test_killed_planning_resumes(tmp_path, make_video, snapshot, vidvq, monkeypatch):
    from vidvq.shard import stage as stages

    make_video(tmp_path / "a.mp4", 8)
    (tmp_path / "list.txt").write_text("".join(f"a.mp4\nmissing-{number}.mp4\n" for number in range(20)))
    monkeypatch.setattr("vidvq.jobs.listing._SOURCES_PER_PART", 4)
    job = ("shard", tmp_path / "list.txt", "--out", tmp_path / "out", *SETTINGS, INLINE, "max_failed=1")
    real, probed = stages.probe_clips, []

    def probe_until(stop):
        def probe(source, config):
            if len(probed) == stop:
                raise KeyboardInterrupt
            probed.append(source.uri)
            return real(source, config)

        return probe

    monkeypatch.setattr(stages, "probe_clips", probe_until(10))
    assert vidvq(*job).code == 130
    monkeypatch.setattr(stages, "probe_clips", probe_until(None))
    assert vidvq(*job).code == 0
    assert len(probed) == 21 + 2, "the two whole parts were not looked at again, the third from its start"
    assert not (tmp_path / "out/planning").exists()
    assert vidvq(*job[:3], tmp_path / "other", *job[4:]).code == 0
    assert snapshot(tmp_path / "other") == snapshot(tmp_path / "out")


def test_the_report_shows_all_reasons_and_clips(hostile_corpus, tmp_path, vidvq):
    vidvq("shard", hostile_corpus, "--out", tmp_path / "out", *SETTINGS, INLINE)
    page = (tmp_path / "out/report.html").read_text()
    for name in ("truncated", "not_a_video", "too_short", "playlist.mp4", "clip.crf"):
        assert name in page
    assert page.count("data:image/jpeg;base64,") == len(clips_of(tmp_path / "out"))
    assert 'src="data:' in page and 'src="http' not in page and "url(" not in page and "<script" not in page


# By default, workers are in test_tokenize_metrics.py.
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_metrics_account_for_the_time_of_workers(demo_videos, tmp_path, vidvq, workers):
    out = tmp_path / "out"
    job = ("shard", demo_videos, "--out", out, *SETTINGS, f"runtime.workers={workers}", "max_failed=1")
    ran = vidvq(*job)
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert metrics["frames"] == json.loads((out / "summary.json").read_bytes())["stats"]["frames"]
    assert 1 <= metrics["workers"] <= max(workers, 1)
    assert metrics["seconds"]["cut"] > 0 and 0 < metrics["efficiency"] <= 1
    assert "% cutting clips" in ran.err
    # A run without work keeps the metrics of the run before it.
    assert "% cutting clips" not in vidvq(*job).err
    assert json.loads((out / "metrics.json").read_bytes()) == metrics


def test_ranges_of_a_video_that_changed_between_them_are_not_cut_from_one_file(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 24)
    planned = [sha256(path.read_bytes()).hexdigest(), sha256(b"what the server gave before").hexdigest()]
    rows = [
        PlannedClip(key=f"k{index}", source=Source(str(path), start_s=index), sha256=digest, num_frames=8)
        for index, digest in enumerate(planned)
    ]
    cut, failed = ClipShardWorker(ShardConfig(), InlinePool())._cut(rows)
    assert cut.files and failed.reason == "changed_since_plan"


def test_a_strip_of_video_is_shown_in_the_report(make_video, tmp_path, vidvq):
    make_video(tmp_path / "wide.mp4", 8, size=(8, 2048))
    make_video(tmp_path / "high.mp4", 8, size=(2048, 8))
    ran = vidvq("shard", tmp_path, "--out", tmp_path / "out", *SETTINGS, "clip.short_side=null", INLINE)
    assert ran.code == 0, ran.err
    assert (tmp_path / "out/report.html").read_text().count("data:image/jpeg") == 2
