"""`vidvq tokenize --dry-run`: what the run then makes, and nothing written."""

import json
from unittest.mock import Mock

import pytest

from vidvq.errors import UsageError
from vidvq.jobs import ListedStage, estimate
from vidvq.runtime import RuntimeConfig

INLINE = "runtime.workers=0"


@pytest.fixture
def raw(make_video, tmp_path):
    (tmp_path / "in").mkdir()
    make_video(tmp_path / "in/one.mp4", 40)
    make_video(tmp_path / "in/two.mp4", 21)
    (tmp_path / "in/none.mp4").write_bytes(b"no video")
    return [tmp_path / "in", "video.short_side=32", "video.multiple=8", "gop_frames=9", "items_per_shard=4"]


def both(command, tmp_path, vidvq, snapshot) -> tuple[dict, dict]:
    before = snapshot(tmp_path)
    dry = vidvq(*command, "--out", tmp_path / "out", "--dry-run", "--json", INLINE)
    assert dry.code == 0, dry.err
    assert "nothing was written" in dry.err
    assert snapshot(tmp_path) == before
    real = vidvq(*command, "--out", tmp_path / "out", "--json", INLINE)
    return json.loads(dry.out), json.loads(real.out)


def test_of_clips(tiny_clips, checkpoint_dir, tmp_path, vidvq, snapshot):
    said, made = both(["tokenize", tiny_clips, "--checkpoint", checkpoint_dir], tmp_path, vidvq, snapshot)
    assert said["exact"]
    assert (said["items"], said["shards"]) == (made["ok"], made["shards"])
    assert (said["stats"]["frames"], said["stats"]["tokens"]) == (made["stats"]["frames"], made["stats"]["tokens"])
    assert said["bytes"] == made["bytes"]
    assert said["seconds"] > 0


def test_of_raw_video(raw, checkpoint_dir, tmp_path, vidvq, snapshot):
    said, made = both(["tokenize", *raw, "--checkpoint", checkpoint_dir], tmp_path, vidvq, snapshot)
    assert (said["inputs"], said["items"], said["stats"]["frames"]) == (3, made["ok"], made["stats"]["frames"])
    assert said["stats"]["tokens"] == pytest.approx(made["stats"]["tokens"], rel=0.2)
    assert said["sampled"] == made["ok"]


def test_an_hour_in_one_stream_is_not_encoded_to_the_end(raw, checkpoint_dir, tmp_path, vidvq, monkeypatch):
    from vidvq.tokenize.worker import TokenShardWorker

    monkeypatch.setattr("vidvq.tokenize.stage._ESTIMATED_FRAMES", 9)
    seen = []
    made = TokenShardWorker.__call__
    monkeypatch.setattr(
        TokenShardWorker, "__call__", lambda self, task, *following: seen.append(task) or made(self, task)
    )
    command = ["tokenize", *raw[:3], "gop_frames=null", "--checkpoint", checkpoint_dir, "--out", tmp_path / "out"]
    said = json.loads(vidvq(*command, "--dry-run", "--json", INLINE).out)
    assert (said["items"], said["stats"]["frames"], said["sampled"]) == (2, 61, 2)
    assert {row.num_frames for task in seen for row in task.rows} == {9}
    done = json.loads(vidvq(*command, "--json", INLINE).out)
    assert said["stats"]["tokens"] == pytest.approx(done["stats"]["tokens"], rel=0.3)


def test_a_stage_that_lists_its_own_items_has_no_estimate():
    stage = Mock(spec=ListedStage, config=Mock(runtime=RuntimeConfig()))
    stage.name = "listed"
    stage.prepare.return_value = stage
    with pytest.raises(UsageError, match="vidvq listed has no --dry-run"):
        estimate(stage, [])


def test_nothing_to_tokenize_is_one_line(checkpoint_dir, tmp_path, vidvq):
    ran = vidvq("tokenize", tmp_path / "gone", "--checkpoint", checkpoint_dir, "--out", tmp_path / "o", "--dry-run")
    assert ran.code == 2
    assert "gone" in ran.error
