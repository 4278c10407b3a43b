"""Clip shards: a clip and its timeline, there and back, and nothing taken on trust."""

import json
from fractions import Fraction

import pytest

from vidvq.formats.clip_shard import ClipInfo, clip_files, parse_clip_info, read_clips
from vidvq.formats.commit import commit_shard

INFO = ClipInfo(
    source="/v/a.mp4",
    clip_index=0,
    time_base="1001/30000",
    pts=(5, 6, 8),
    duration=4,
    fps=22.477522,
    height=8,
    width=16,
    decoder="decord 0.6.0",
    policy={"crf": 17},
)


def changed(**fields: object) -> bytes:
    data = json.loads(clip_files(b"", "mp4", INFO)["json"]) | fields
    return json.dumps({key: value for key, value in data.items() if value != "REMOVE"}).encode()


def test_a_clip_comes_back_as_it_went_in(tmp_path):
    commit_shard(tmp_path, "clips-000000.tar", "plan", lambda draft: draft.add("a", clip_files(b"movie", "mp4", INFO)))
    assert list(read_clips(tmp_path / "clips-000000.tar")) == [("a", b"movie", INFO)]
    assert (INFO.num_frames, INFO.seconds_per_tick) == (3, Fraction(1001, 30000))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        changed(format="vidvq.clip/2"),
        changed(pts=[]),
        changed(pts=["a"]),
        changed(pts=None),
        changed(pts="REMOVE"),
        changed(height=0),
        changed(width=-4),
        changed(width="wide"),
        changed(time_base="0/1"),
        changed(time_base="1/0"),
        changed(time_base="soon"),
        changed(time_base="1e999999999"),
        changed(time_base="1e-999999999"),
        changed(decoder="REMOVE"),
        changed(surprise=1),
    ],
)
def test_bad_json_is_refused_by_name(data):
    with pytest.raises(ValueError, match=r"x\.tar: a has no readable clip JSON"):
        parse_clip_info(data, "x.tar: a")


@pytest.mark.parametrize("extra", [{"txt": b""}, {"mp4": None}, {"json": None}, {"pickle": b"."}, {"mkv": b"twice"}])
def test_a_sample_has_a_clip_and_its_json_and_no_more(tmp_path, extra):
    given = {name: data for name, data in (clip_files(b"movie", "mp4", INFO) | extra).items() if data is not None}
    commit_shard(tmp_path, "clips-000000.tar", "plan", lambda draft: draft.add("a", given))
    with pytest.raises(ValueError, match="a has .*; a clip has json and one of mp4, mkv, npy"):
        list(read_clips(tmp_path / "clips-000000.tar"))
