"""`vidvq shard` end to end: the same bytes however it runs, and every input accounted for."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest

from vidvq.formats.clip_shard import read_clips
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import read_plan
from vidvq.video.decode import decode_clip

SETTINGS = "clip.num_frames=8 clip.min_frames=4 clip.short_side=32 clip.multiple=8 clips_per_shard=3".split()
INLINE = "runtime.workers=0"


def clips_of(folder: Path) -> list:
    return [clip for path in sorted(folder.glob("*.tar")) for clip in read_clips(path)]


def reasons(folder: Path) -> dict[str, list[str]]:
    """Input file name -> why something of it is not there."""
    found: dict[str, list[str]] = {}
    for name, rows in read_plan(folder).shards():
        record = read_commit(folder, name)
        assert record
        uris = {row["key"]: Path(row["uri"]).name for row in rows}
        for outcome in (*record.failed, *record.filtered):
            found.setdefault(uris[outcome.key], []).append(outcome.reason)
    return found


@pytest.fixture
def hostile_corpus(tmp_path, demo_videos, make_video, make_audio) -> Path:
    """One good video among all that a corpus can hold against you."""
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


def test_failures_below_the_threshold_are_no_failure(hostile_corpus, tmp_path, vidvq):
    assert vidvq("shard", hostile_corpus, "--out", tmp_path / "out", *SETTINGS, INLINE, "max_failed=1").code == 0


def test_with_workers_of_ray_the_bytes_are_the_same(hostile_corpus, tmp_path, vidvq, snapshot):
    inline, ray = tmp_path / "inline", tmp_path / "ray"
    assert vidvq("shard", hostile_corpus, "--out", inline, *SETTINGS, INLINE).code == 1
    ran = vidvq("shard", hostile_corpus, "--out", ray, "--json", *SETTINGS, "runtime.workers=2")
    assert ran.code == 1
    assert json.loads(ran.out)["planned"] > 0, "nothing but the result is on stdout"
    assert snapshot(ray) == snapshot(inline)


def test_a_clip_shows_the_frames_that_its_times_say(tmp_path, make_video, vidvq):
    """Across clips and shards, with frames out of order and groups of pictures open."""
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


def test_clips_keep_the_uneven_times_of_their_source(demo_videos, tmp_path, vidvq):
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


def test_a_clip_says_where_it_came_from(clips_dir, demo_videos):
    (key, _, info), *_ = clips_of(clips_dir)
    assert key.startswith("carphone-")
    assert info.source == (demo_videos / "train/carphone.mp4").absolute().as_posix()
    assert (info.height, info.width, info.num_frames, info.policy["num_frames"]) == (32, 32, 9, 9)
    assert info.decoder.split()[0] in {"decord", "pyav"}
    assert abs(info.fps - 29.97) < 0.01


def test_a_source_that_changes_after_the_plan_fails_by_that_name(tmp_path, make_video, vidvq):
    video = make_video(tmp_path / "v.mp4", 16)
    out = tmp_path / "out"
    assert vidvq("shard", video, "--out", out, *SETTINGS, INLINE, "clips_per_shard=1").code == 0
    for path in (out / "clips-000001.tar", out / "commits/clips-000001.tar.json"):
        path.unlink()
    stat = video.stat()
    from vidvq.shard import ShardConfig
    from vidvq.shard.cut import CutJob, cut_clips

    rows = [row for _, shard_rows in read_plan(out).shards() for row in shard_rows]
    video.write_bytes(video.read_bytes() + b"\0")
    (cut,) = cut_clips(CutJob((rows[1],), ShardConfig()))
    assert (cut.key, cut.files, cut.verdict, cut.reason) == (rows[1]["key"], None, "failed", "changed_since_plan")
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
def test_another_setting_into_the_same_directory_is_refused(
    clips_dir, demo_videos, tiny_settings, copy_of, snapshot, vidvq, change, said
):
    out = copy_of(clips_dir)
    arguments = ["shard", demo_videos / "train/carphone.mp4", "--out", out, *tiny_settings, INLINE, *change]
    ran = vidvq(*arguments)
    assert ran.code == 2 and said in ran.error
    assert snapshot(out) == snapshot(clips_dir)


def test_another_corpus_into_the_same_directory_is_refused(clips_dir, demo_videos, tiny_settings, copy_of, vidvq):
    out = copy_of(clips_dir)
    ran = vidvq("shard", demo_videos / "train/portrait_man.mp4", "--out", out, *tiny_settings, INLINE)
    assert ran.code == 2
    assert "portrait_man.mp4 was added" in ran.error and "carphone.mp4 was removed" in ran.error


def test_a_directory_of_something_else_is_refused_untouched(demo_videos, tmp_path, vidvq):
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
