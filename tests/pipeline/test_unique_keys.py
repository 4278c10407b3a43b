"""Every item of a plan has a key of its own, in new directories and in those that an earlier vidvq planned."""

import hashlib
import json
from pathlib import Path

import pytest

from vidvq.formats import keys
from vidvq.formats.clip_shard import read_clips
from vidvq.formats.plan import read_plan
from vidvq.jobs import plan_videos
from vidvq.shard import probe
from vidvq.shard.rows import PlannedClip

SETTINGS = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=2".split()
RUN = ("runtime.workers=0", "max_failed=1")


@pytest.fixture
def few_bits(monkeypatch):
    """All hashes of names are alike, except that attempts differ."""
    monkeypatch.setattr(keys, "sha256_bytes", lambda data: f"h{data.count(0)}")


@pytest.fixture
def videos(tmp_path, make_video) -> Path:
    for folder, frames in (("a", 8), ("b", 12), ("c", 4)):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        make_video(tmp_path / "videos" / folder / "кино.mp4", frames, size=(32, 64 + frames))
    return tmp_path / "videos"


def keys_of(out: Path) -> dict[str, list[str]]:
    """The keys of the clips of each video, from the shards."""
    found: dict[str, list[str]] = {}
    for path in sorted(out.glob("*.tar")):
        for key, _, info in read_clips(path):
            found.setdefault(Path(info.source).parent.name, []).append(key)
    return found


def test_videos_with_the_same_hash_get_different_keys(few_bits, videos, tmp_path, snapshot, vidvq):
    out = tmp_path / "out"
    assert vidvq("shard", videos, "--out", out, *SETTINGS, *RUN).code == 0
    expected = {
        "a": ["кино-h0-00000", "кино-h0-00001"],
        "b": ["кино-h1-00000", "кино-h1-00001", "кино-h1-00002"],
        "c": ["кино-h2-00000"],
    }
    assert keys_of(out) == expected
    assert vidvq("verify", out).code == 0
    before = snapshot(out)
    assert vidvq("shard", videos, "--out", out, *SETTINGS, *RUN).code == 0
    assert snapshot(out) == before


def test_an_update_keeps_the_keys_that_were_resolved(few_bits, videos, tmp_path, make_video, vidvq):
    out = tmp_path / "out"
    (videos / "b/кино.mp4").write_bytes(b"RIFF")
    assert vidvq("shard", videos / "a", videos / "b", "--out", out, *SETTINGS, *RUN).code == 0
    assert vidvq("shard", videos, "--out", out, "--add", *RUN).code == 0
    make_video(videos / "b/кино.mp4", 4)
    assert vidvq("shard", "--out", out, "--retry-failed", *RUN).code == 0
    assert vidvq("shard", "--out", out, "--remove", videos / "a/кино.mp4", *RUN).code == 0
    assert vidvq("shard", videos, "--out", out, "--add", *RUN).code == 0
    assert keys_of(out) == {
        "a": ["кино-h0-00000", "кино-h0-00001"],
        "b": ["кино-h1-00000"],
        "c": ["кино-h2-00000"],
    }
    assert vidvq("verify", out).code == 0


def old_key(identity: str, attempt: int = 0) -> str:
    """The common part of the keys of a video, as it was before they had a scheme."""
    return f"video-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


def test_a_directory_with_keys_of_an_earlier_scheme_stays_valid(
    videos, tmp_path, make_video, monkeypatch, snapshot, vidvq
):
    out, broken = tmp_path / "out", videos / "b/кино.mp4"
    broken.write_bytes(b"RIFF")
    with monkeypatch.context() as earlier:
        earlier.setattr(probe, "video_key", old_key)
        record = plan_videos.create_plan

        def record_no_scheme(out, stage, prefix, made_from, *more):
            del made_from["key_scheme"]
            return record(out, stage, prefix, made_from, *more)

        earlier.setattr(plan_videos, "create_plan", record_no_scheme)
        earlier.setattr(plan_videos, "refuse_other_origin", lambda *_: None)
        assert vidvq("shard", videos / "a", videos / "b", "--out", out, *SETTINGS, *RUN).code == 0
    assert "key_scheme" not in json.loads((out / "plan.json").read_bytes())["made_from"]
    before = snapshot(out)
    assert vidvq("shard", videos / "a", videos / "b", "--out", out, *SETTINGS, *RUN).code == 0
    assert snapshot(out) == before, "resumed"
    make_video(broken, 8, size=(32, 80))
    assert vidvq("shard", "--out", out, "--retry-failed", *RUN).code == 0
    assert vidvq("shard", videos, "--out", out, "--add", *RUN).code == 0
    assert vidvq("verify", out).code == 0
    found = keys_of(out)
    for folder in "ab":
        uri = str(videos / folder / "кино.mp4")
        assert found[folder] == [f"{old_key(uri)}-{index:05d}" for index in range(2)]
    assert found["c"] == [f"{keys.video_key(str(videos / 'c/кино.mp4'))}-00000"]
    assert vidvq("shard", "--out", out, "--remove", videos / "a/кино.mp4", *RUN).code == 0
    assert vidvq("shard", videos, "--out", out, "--add", *RUN).code == 0
    assert keys_of(out) == found
    rows = list(read_plan(out).rows(PlannedClip))
    assert len({row.key for row in rows}) == len(rows) == 5
    assert vidvq("shard", videos, "--out", out, *SETTINGS, *RUN).code == 0
