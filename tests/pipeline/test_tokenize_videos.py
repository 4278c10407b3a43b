"""Tokens of raw video equal those of the whole video, whatever process decoded which part of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.decoders import count_or_die, decode_or_crash, process_id
from tests.helpers.oddities import remux
from vidvq.config import validate
from vidvq.corpus.source import source_at
from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens
from vidvq.model import iter_encode
from vidvq.model.pixels import to_video
from vidvq.pretrained import load_tokenizer
from vidvq.runtime import Feeder, WorkerDied
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.probe import probe_samples
from vidvq.video.decode import open_reader
from vidvq.video.geometry import fit_size
from vidvq.video.limits import Limits
from vidvq.video.probe import probe

INLINE = "runtime.workers=0"
SETTINGS = ["video.short_side=32", "video.multiple=8", "items_per_shard=4"]


@pytest.fixture
def video(tmp_path, make_video) -> Path:
    (tmp_path / "in").mkdir()
    return make_video(tmp_path / "in/long.mp4", 50, codec_options={"g": "10"})


def samples(folder: Path) -> list:
    card = read_tokenizer_card(folder)
    return [sample for shard in sorted(folder.glob("*.tar")) for sample in read_tokens(shard, card)]


def whole_frames(video: Path) -> np.ndarray:
    info = probe(video, Limits())
    return open_reader(video, info, fit_size(*info.shown_size, 32, 8), "pyav").read(list(range(info.num_frames)))


def encode_whole(checkpoint: Path, frames: np.ndarray) -> np.ndarray:
    return load_tokenizer(checkpoint)[0].encode(to_video(frames))[0].numpy()


def test_each_gop_is_the_stream_started_afresh_and_tells_when_it_is(vidvq, video, tmp_path, checkpoint_dir):
    out = tmp_path / "out"
    assert (
        vidvq("tokenize", video, "--checkpoint", checkpoint_dir, "--out", out, *SETTINGS, "gop_frames=9", INLINE).code
        == 0
    )
    found, frames = samples(out), whole_frames(video)
    assert [(info.clip_index, info.num_frames) for _, _, info in found] == [*((n, 9) for n in range(5)), (5, 5)]
    for index, (_, codes, _) in enumerate(found):
        assert np.array_equal(codes, encode_whole(checkpoint_dir, frames[9 * index : 9 * index + 9]))
    assert [tick for _, _, info in found for tick in info.pts] == list(probe(video, Limits()).pts)
    rows = read_plan(out).table.to_pylist()
    assert [row["key"] for row in rows] == [key for key, _, _ in found]
    assert [(round(row["begin_s"], 6), round(row["until_s"], 6)) for row in rows][1] == (0.36, 0.72)
    assert rows[-1]["until_s"] == pytest.approx(2.0)
    assert vidvq("verify", out).code == 0


def test_a_sample_lasts_as_long_as_its_last_frame_is_held(tmp_path, make_video):
    def hold(packets):
        packets[-1].duration = round(8 / packets[-1].time_base)

    make_video(tmp_path / "a.mkv", 12, codec_options={"bf": "0"})
    source = source_at(str(remux(tmp_path / "a.mkv", tmp_path / "v.mkv", hold)))
    rows = probe_samples(source, validate(TokenizeConfig, {"gop_frames": 5}))
    assert [round(row.until_s, 3) for row in rows] == [0.2, 0.4, 8.44]


def test_without_gops_a_video_is_one_unbroken_stream(vidvq, video, tmp_path, checkpoint_dir):
    out = tmp_path / "out"
    assert (
        vidvq(
            "tokenize", video.parent, "--checkpoint", checkpoint_dir, "--out", out, *SETTINGS, "gop_frames=null", INLINE
        ).code
        == 0
    )
    ((_, codes, info),) = samples(out)
    assert info.num_frames == 50
    assert np.array_equal(codes, encode_whole(checkpoint_dir, whole_frames(video)))


def test_chunks_of_any_length_give_the_same_codes(video, checkpoint_dir):
    tokenizer, _ = load_tokenizer(checkpoint_dir)
    frames = whole_frames(video)
    whole = tokenizer.encode(to_video(frames))[0].numpy()
    for chunk in (4, 8, 32):
        chunks = [frames[:1]] if chunk == 4 else [frames[: 1 + chunk]]
        start = len(chunks[0])
        chunks += [frames[at : at + chunk] for at in range(start, len(frames), chunk)]
        assert np.array_equal(torch.cat(list(iter_encode(tokenizer, chunks))).numpy(), whole)


def test_workers_change_no_byte(vidvq, video, tmp_path, checkpoint_dir, snapshot):
    for workers in (0, 2):
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / str(workers))
        assert vidvq("tokenize", video, *where, *SETTINGS, "gop_frames=5", f"runtime.workers={workers}").code == 0
    assert snapshot(tmp_path / "0") == snapshot(tmp_path / "2")


def test_a_bad_video_costs_itself_alone(vidvq, video, tmp_path, checkpoint_dir):
    (video.parent / "bad.mp4").write_text("no video")
    out = tmp_path / "out"
    ran = vidvq("tokenize", video.parent, "--checkpoint", checkpoint_dir, "--out", out, *SETTINGS, INLINE)
    assert ran.code == 1
    account = json.loads((out / "summary.json").read_bytes())
    assert (account["ok"], account["failed"]["not_a_video"]["count"]) == (2, 1)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("gop_frames=16", "gop_frames=16 must be 1 + a multiple of 4; nearest 13 or 17"),
        ("gop_frames=0", "gop_frames"),
    ],
)
def test_a_length_that_groups_do_not_fill_is_refused(vidvq, video, tmp_path, checkpoint_dir, setting, said):
    ran = vidvq("tokenize", video, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", setting, INLINE)
    assert (ran.code, said in ran.error) == (2, True)
    assert not (tmp_path / "out").exists()


def test_settings_of_raw_video_are_refused_for_clips(vidvq, clips_dir, tmp_path, checkpoint_dir):
    where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / "out")
    ran = vidvq("tokenize", clips_dir, *where, "video.fps=5", INLINE)
    assert (ran.code, "video.* is for raw video" in ran.error) == (2, True)


@pytest.mark.parametrize("item", ["kill", "hang"])
def test_a_decoder_that_crashes_or_hangs_ends_alone(item):
    *before, last = Feeder().feed(count_or_die, item, deadline_s=1.0)
    assert before == [1]
    assert isinstance(last, WorkerDied)


def test_an_exception_of_a_decoder_is_raised_where_it_is_consumed():
    assert list(Feeder().feed(count_or_die, "fine")) == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        list(Feeder().feed(count_or_die, "raise"))


def test_one_process_decodes_for_all_shards_until_it_dies():
    feeder = Feeder()
    (first,) = feeder.feed(process_id, "a")
    (second,) = feeder.feed(process_id, "b")
    assert first == second
    third, last = feeder.feed(process_id, "kill")
    assert third == first
    assert isinstance(last, WorkerDied)
    (fourth,) = feeder.feed(process_id, "c")
    assert fourth != first


def test_an_item_that_kills_its_decoder_is_counted_and_the_others_are_made(
    vidvq, video, tmp_path, checkpoint_dir, monkeypatch
):
    monkeypatch.setattr("vidvq.tokenize.decoders.decode_items", decode_or_crash)
    out = tmp_path / "out"
    where = ("--checkpoint", checkpoint_dir, "--out", out)
    assert vidvq("tokenize", video, *where, *SETTINGS, "gop_frames=9", INLINE).code == 1
    assert json.loads((out / "summary.json").read_bytes())["failed"]["decoder_died"]["count"] == 1
    assert [info.clip_index for _, _, info in samples(out)] == [0, 1, 3, 4, 5]
    assert vidvq("verify", out).code == 0
