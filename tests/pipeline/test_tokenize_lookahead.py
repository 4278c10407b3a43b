"""The input of the next shard is prepared while a worker makes one."""

from concurrent.futures import Future

import pytest

from vidvq.formats.commit import read_commit
from vidvq.formats.execution import CPU
from vidvq.formats.plan import read_plan
from vidvq.jobs.rows import ClipRow
from vidvq.jobs.stage import ShardTask
from vidvq.tokenize import worker
from vidvq.tokenize.config import TokenizeConfig


def at_once(function):
    """Stands for the thread, with no race."""
    future = Future()
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001
        future.set_exception(error)
    return future


@pytest.fixture
def make(monkeypatch, checkpoint_dir, tiny_clips):
    monkeypatch.setattr(worker, "in_background", at_once)
    return worker.TokenShardWorker(checkpoint_dir, TokenizeConfig(), tiny_clips, CPU)


@pytest.fixture
def tasks(tiny_tokens, tmp_path):
    plan = read_plan(tiny_tokens)
    return [ShardTask(tmp_path, shard, plan.id_of(0), rows) for shard, rows in plan.shards(ClipRow)]


def test_the_next_shard_is_decoded_before_a_shard_is_committed(make, tasks, tiny_tokens, monkeypatch):
    log, messages = [], make._decoders.messages

    def logged(slot, job, deadline_s):
        log.append((sorted(job.keys), read_commit(tasks[0].out, tasks[0].shard) is not None))
        return messages(slot, job, deadline_s)

    monkeypatch.setattr(make._decoders, "messages", logged)
    make(tasks[0], tasks[1])
    assert log == [([row.key for row in task.rows if not row.outcome], False) for task in tasks]
    make(tasks[1])
    assert len(log) == 2
    for task in tasks:
        assert (task.out / task.shard).read_bytes() == (tiny_tokens / task.shard).read_bytes()


def test_a_shard_that_another_worker_takes_is_dropped(make, tasks, tiny_tokens):
    make(tasks[0], tasks[1])
    _, opened = make._next
    make(tasks[0])
    assert make._next is None
    assert not list(opened.result().take_decoding(0)), "decoding has been stopped"
    make(tasks[1])
    assert (tasks[1].out / tasks[1].shard).read_bytes() == (tiny_tokens / tasks[1].shard).read_bytes()


def test_a_shard_is_committed_though_the_next_one_cannot_be_read(vidvq, tiny_clips, checkpoint_dir, tmp_path, copy_of):
    clips = copy_of(tiny_clips)
    where = (clips, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", "runtime.workers=0")
    _, second = sorted(clips.glob("*.tar"))
    content = second.read_bytes()
    second.unlink()
    done = vidvq("tokenize", *where)
    assert done.code == 2 and f"{second} is missing or not the one that was planned" in done.error
    assert read_commit(tmp_path / "out", "tokens-000000.tar") and not read_commit(tmp_path / "out", "tokens-000001.tar")
    second.write_bytes(content)
    assert vidvq("tokenize", *where).code == 0


def test_an_error_stops_what_was_prepared(make, tasks, monkeypatch):
    opened = []
    monkeypatch.setattr(worker, "in_background", lambda function: opened.append(at_once(function)) or opened[0])
    monkeypatch.setattr(worker, "refuse_poor", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tasks[0], tasks[1])
    assert not list(opened[0].result().take_decoding(0)) and make._next is None
