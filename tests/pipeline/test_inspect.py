"""`vidvq inspect` names what vidvq did not write."""

import io
import os
import re
import tarfile
import weakref
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidvq.formats import commit
from vidvq.inspect import describe


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix != ".tar" else "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["films.tar", "films.tar.gz", "clips-000000.tar"])
def test_a_foreign_tar_is_described_as_it_would_be_read(tmp_path, vidvq, name):
    path = pack(tmp_path / name, {"a/x.mp4": b"12", "a/x.json": b"{}", "a/y.mkv": b"345", "README": b"z"})
    ran = vidvq("inspect", path)
    assert ran.code == 0, ran.err
    first, *lines = ran.out.splitlines()
    assert f"{name}: tar that vidvq did not write, 2 videos" in first
    assert "  a/x.mp4 (2 bytes)" in lines and "  other members: 1 .json, 1 without a suffix" in lines


def test_a_tar_without_videos_and_a_torn_one(tmp_path, vidvq):
    path = pack(tmp_path / "images.tar", {"0.jpg": b"1", "1.jpg": b"2"})
    ran = vidvq("inspect", path)
    assert ran.code == 0 and "0 videos" in ran.out and "other members: 2 .jpg" in ran.out
    path = pack(tmp_path / "torn.tar", {"x.mp4": b"1" * 5000, "y.mp4": b"2"})
    path.write_bytes(path.read_bytes()[:5800])
    ran = vidvq("inspect", path)
    assert ran.code == 0 and "cannot be read: torn_tar" in ran.out


def test_a_lone_shard_is_a_shard(clips_dir, tmp_path, vidvq):
    shard = sorted(clips_dir.glob("*.tar"))[0]
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    ran = vidvq("inspect", tmp_path / shard.name)
    assert ran.code == 0 and "clip shard, 4 samples" in ran.out


@pytest.mark.parametrize(
    ("encoding", "suffix"), [("h264", "mp4"), ("h264-fastdecode", "mp4"), ("ffv1", "mkv"), ("frames", "npy")]
)
def test_clips_of_every_encoding_are_described(tmp_path, make_video, vidvq, encoding, suffix):
    out = tmp_path / "clips"
    video = make_video(tmp_path / "v.mp4", 9)
    assert vidvq("shard", video, "--out", out, "runtime.workers=0", f"clip.encoding={encoding}").code == 0
    (line,) = (line for line in vidvq("inspect", out / "clips-000000.tar").out.splitlines() if "9 frames" in line)
    assert f" bytes of {suffix}, clip 0 of {video}" in line
    shard = (out / "clips-000000.tar").read_bytes()
    assert (b" cabac=0 " in shard) == (encoding == "h264-fastdecode")


def test_parquet_files_are_named(tmp_path, clips_dir, copy_of, vidvq):
    pq.write_table(pa.table({"url": ["a.mp4"], "caption": ["a"]}), tmp_path / "list.parquet")
    ran = vidvq("inspect", tmp_path / "list.parquet")
    assert ran.code == 0 and "that vidvq did not write, 1 row\n" in ran.out and "a list of videos" in ran.out
    inside = pa.array([{"bytes": b"x", "path": "a.mp4"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"clip": inside}), tmp_path / "list.parquet")
    assert "no column names videos; lists.uri=COLUMN" in vidvq("inspect", tmp_path / "list.parquet").out
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "numbers.parquet")
    ran = vidvq("inspect", tmp_path / "numbers.parquet")
    assert ran.code == 0 and "columns: x (int64)" in ran.out and "no column names videos" in ran.out
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    ran = vidvq("inspect", tmp_path / "broken.parquet")
    assert ran.code == 2 and "is not a readable parquet file" in ran.error
    out = copy_of(clips_dir)
    (out / "plan-0001-0123456789ab.parquet").write_bytes((out / "plan.parquet").read_bytes())
    assert "clip shards of plan" in vidvq("inspect", out / "plan-0001-0123456789ab.parquet").out


def test_a_named_pipe_is_not_waited_for(vidvq, tmp_path):
    for name in ("x.mp4", "x.tar", "x.json"):
        os.mkfifo(tmp_path / name)
        assert "is neither a regular file nor a directory" in vidvq("inspect", tmp_path / name).error


def test_settings_are_shown_as_they_are_given(clips_dir, checkpoint_dir, vidvq):
    ran = vidvq("inspect", clips_dir)
    assert ran.code == 0
    (clip,) = [line for line in ran.out.splitlines() if line.startswith("  clip: ")]
    assert "fps=null" in clip.split() and "num_frames=9" in clip.split() and "encoding=h264" in clip.split()
    assert "{" not in vidvq("inspect", checkpoint_dir).out


def test_records_of_a_large_corpus_are_read_one_at_a_time(clips_dir, monkeypatch):
    read, seen, most = commit._read, [], 0

    def watched(path):
        nonlocal most
        found = read(path)
        seen.append(weakref.ref(found))
        most = max(most, sum(each() is not None for each in seen))
        return found

    monkeypatch.setattr(commit, "_read", watched)
    lines = list(describe(clips_dir))
    assert len(seen) >= 3 and f"  committed: {len(seen)} shards" in "\n".join(lines)
    assert most <= 2


@pytest.mark.parametrize(
    ("pts", "rate"), [([0, 1, 2, 3, 4], "constant"), ([0, 1, 2, 4, 5], "variable"), ([0], "constant")]
)
def test_a_video_with_a_dropped_frame_has_a_variable_rate(tmp_path, make_video, vidvq, pts, rate):
    ran = vidvq("inspect", make_video(tmp_path / "x.mp4", len(pts), pts=pts))
    assert ran.code == 0 and f"{rate} frame rate" in ran.out


def test_times_rounded_to_milliseconds_are_a_constant_rate(tmp_path, make_video, vidvq):
    pts = [round(frame * 1000 / 30) for frame in range(9)]
    ran = vidvq("inspect", make_video(tmp_path / "x.mkv", len(pts), pts=pts, time_base=Fraction(1, 1000)))
    assert ran.code == 0 and "constant frame rate" in ran.out


def test_counts_of_one_and_small_sizes_are_in_words(tmp_path, make_video, vidvq):
    video, clips = make_video(tmp_path / "one.mp4", 1), tmp_path / "clips"
    settings = "clip.num_frames=1 clip.min_frames=1 clip.short_side=16 clip.multiple=8 runtime.workers=0".split()
    ran = vidvq("shard", video, "--out", clips, *settings)
    assert ran.code == 0 and re.search(r"1 shard, \d+\.\d kB, 1 frame$", ran.err, re.MULTILINE), ran.err
    ran = vidvq("inspect", clips / "clips-000000.tar")
    assert re.search(r": clip shard, 1 sample, \d+\.\d kB\n.*: 1 frame 32x16 at", ran.out), ran.out
    assert "1 item planned" in vidvq("verify", clips).out
