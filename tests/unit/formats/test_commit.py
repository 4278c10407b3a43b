"""Commits: a shard exists once, whoever was first, and a kill leaves nothing that the next run cannot finish."""

import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from vidvq.errors import UsageError
from vidvq.formats import commit as commits
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard, finished_shards, read_commit
from vidvq.formats.plan import create_plan
from vidvq.formats.summary import summarize
from vidvq.formats.tar import read_members
from vidvq.storage import add_digest, remove_attempts
from vidvq.storage import files as storage

SHARD = "clips-000000.tar"


def fill(draft: ShardDraft) -> None:
    draft.add("a", {"mp4": b"movie", "json": b"{}"}, frames=3)
    draft.add("b", {"mp4": b"film", "json": b"{}"}, frames=4)
    draft.failed.append(Outcome("c", "decode_error", "c.mp4: torn"))
    draft.filtered.append(Outcome("d", "too_short", "d.mp4: has 2 frames"))


def other(draft: ShardDraft) -> None:
    draft.add("a", {"mp4": b"something else", "json": b"{}"})


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


WHOLE = [SHARD, f"commits/{SHARD}.json"]


def test_a_record_says_all_that_its_shard_holds(tmp_path):
    record = commit_shard(tmp_path, SHARD, "plan", fill)
    data = (tmp_path / SHARD).read_bytes()
    assert read_commit(tmp_path, SHARD) == record
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert record.bytes == len(data)
    assert (record.ok, record.items, record.stats, record.plan_id) == (2, 4, {"frames": 7}, "plan")
    assert [member.name for member in record.members] == ["a.json", "a.mp4", "b.json", "b.mp4"]
    assert files(tmp_path) == WHOLE


def test_a_shard_without_an_ok_item_has_a_record_and_no_tar(tmp_path):
    record = commit_shard(tmp_path, SHARD, "plan", lambda draft: draft.failed.append(Outcome("a", "empty_file")))
    assert (record.sha256, record.bytes, record.ok, record.items) == (None, 0, 0, 1)
    assert files(tmp_path) == [f"commits/{SHARD}.json"]


def test_any_message_of_a_library_fits_into_a_record(tmp_path):
    details = {"a": "x" * (2 << 20), "b": "bad \udcff name", "c": "https://u:secret@host/v.mp4?X-Amz-Signature=secret"}

    def fail(draft: ShardDraft) -> None:
        draft.failed.extend(Outcome(key, "y" * 300, detail) for key, detail in details.items())

    long, undecodable, secret = commit_shard(tmp_path, SHARD, "plan", fail).failed
    assert details["a"].startswith(long.detail) and long.reason == "y" * 256
    assert undecodable.detail == r"bad \udcff name" and "secret" not in secret.detail and "host/v.mp4" in secret.detail


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_shard_that_fails_half_way_leaves_nothing(tmp_path, error):
    def half(draft: ShardDraft) -> None:
        draft.add("a", {"mp4": b"movie"})
        raise error

    with pytest.raises(type(error)):
        commit_shard(tmp_path, SHARD, "plan", half)
    assert files(tmp_path) == []


def test_who_loses_the_race_gets_the_winners_record_and_leaves_nothing(tmp_path):
    def lose(draft: ShardDraft) -> None:
        draft.add("a", {"mp4": b"half"})
        commit_shard(tmp_path, SHARD, "plan", fill)
        draft.add("z", {"mp4": b"the other half"})

    standing = commit_shard(tmp_path, SHARD, "plan", lose)
    assert standing.ok == 2
    assert dict(read_members(tmp_path / SHARD))["a.mp4"] == b"movie"
    assert files(tmp_path) == WHOLE


def test_who_is_late_for_a_finished_job_gets_the_winners_record(tmp_path):
    def late(draft: ShardDraft) -> None:
        commit_shard(tmp_path, SHARD, "plan", fill)
        remove_attempts(tmp_path)

    assert commit_shard(tmp_path, SHARD, "plan", late).ok == 2
    assert files(tmp_path) == WHOLE


def test_a_temporary_file_that_is_lost_is_an_error_unless_the_shard_is_committed(tmp_path):
    with pytest.raises(FileNotFoundError):
        commit_shard(tmp_path, SHARD, "plan", lambda draft: remove_attempts(tmp_path))


def test_who_loses_between_tar_and_record_gets_the_winners_record(tmp_path, monkeypatch):
    publish = commits._publish

    def slow(*arguments):
        commit_shard(tmp_path, SHARD, "plan", fill)
        publish(*arguments)

    # The one who is overtaken is the first call only.
    monkeypatch.setattr(commits, "_publish", lambda *a: (monkeypatch.setattr(commits, "_publish", publish), slow(*a)))
    standing = commit_shard(tmp_path, SHARD, "plan", other)
    assert (standing.ok, standing.stats) == (2, {"frames": 7})
    assert hashlib.sha256((tmp_path / SHARD).read_bytes()).hexdigest() == standing.sha256
    assert files(tmp_path) == WHOLE


def test_many_writers_at_once_leave_one_whole_shard(tmp_path):
    for turn in range(15):
        out, barrier, records = tmp_path / str(turn), threading.Barrier(4), []

        def write(out: Path = out, barrier: threading.Barrier = barrier, records: list = records) -> None:
            barrier.wait()
            records.append(commit_shard(out, SHARD, "plan", fill))

        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(records) == 4 and len(set(map(repr, records))) == 1
        assert hashlib.sha256((out / SHARD).read_bytes()).hexdigest() == records[0].sha256
        assert files(out) == WHOLE


def test_a_shard_published_by_a_killed_writer_is_recorded_by_the_next(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("equal content is nothing to wait for")

    monkeypatch.setattr("time.sleep", never)
    first = commit_shard(tmp_path, SHARD, "plan", fill)
    (tmp_path / f"commits/{SHARD}.json").unlink()
    assert commit_shard(tmp_path, SHARD, "plan", fill) == first
    assert files(tmp_path) == WHOLE


def test_a_foreign_tar_under_the_final_name_is_replaced_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_OTHER_WRITER_S", 0.2)
    (tmp_path / SHARD).write_bytes(b"torn copy")
    record = commit_shard(tmp_path, SHARD, "plan", fill)
    assert hashlib.sha256((tmp_path / SHARD).read_bytes()).hexdigest() == record.sha256
    assert files(tmp_path) == WHOLE


def test_what_a_killed_writer_published_is_no_file_of_a_shard_whose_items_then_all_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_OTHER_WRITER_S", 0.2)
    commit_shard(tmp_path, SHARD, "plan", fill)
    (tmp_path / f"commits/{SHARD}.json").unlink()
    record = commit_shard(tmp_path, SHARD, "plan", lambda draft: draft.failed.append(Outcome("a", "too_slow")))
    assert record.sha256 is None
    assert files(tmp_path) == [f"commits/{SHARD}.json"]


def test_a_writer_whose_items_all_fail_leaves_the_file_of_one_that_is_faster(tmp_path, monkeypatch):
    publish = commits._publish

    def overtaken(*arguments):
        monkeypatch.setattr(commits, "_publish", publish)
        commit_shard(tmp_path, SHARD, "plan", fill)
        publish(*arguments)

    monkeypatch.setattr(commits, "_publish", overtaken)
    record = commit_shard(tmp_path, SHARD, "plan", lambda draft: draft.failed.append(Outcome("a", "too_slow")))
    assert record.ok == 2
    assert files(tmp_path) == WHOLE


def test_no_commit_lists_a_directory_that_may_hold_all_shards(tmp_path, monkeypatch):
    listed = []
    for name in ("scandir", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, real=real: (listed.append(given), real(*given))[1])
    for number in range(3):
        commit_shard(tmp_path, f"clips-{number:06d}.tar", "plan", fill)
    assert listed == []


def test_a_shard_that_is_not_committed_has_no_record(tmp_path):
    assert read_commit(tmp_path, SHARD) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"format": "vidvq.commit/1"}', '{"format": "other/1"}'])
def test_a_damaged_record_is_refused_by_name(tmp_path, damage):
    commit_shard(tmp_path, SHARD, "plan", fill)
    (tmp_path / f"commits/{SHARD}.json").write_text(damage)
    with pytest.raises(ValueError, match=f"{SHARD}.json"):
        read_commit(tmp_path, SHARD)


def test_a_record_with_an_unknown_field_is_refused(tmp_path):
    commit_shard(tmp_path, SHARD, "plan", fill)
    path = tmp_path / f"commits/{SHARD}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))
    with pytest.raises(ValueError, match="surprise"):
        read_commit(tmp_path, SHARD)


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        ({"shard": "clips-000001.tar"}, "it is the record of clips-000001.tar"),
        ({"members": [["a.mp4", 5, 0], ["a.mp4", 5, 0]]}, "a member occurs twice"),
        ({"sha256": None}, "it has content, but no sha256"),
        ({"bytes": 20480}, "bytes=20480 does not match its members, which need 10240"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_though_its_digest_fits(tmp_path, lie, fault):
    commit_shard(tmp_path, SHARD, "plan", fill)
    path = tmp_path / f"commits/{SHARD}.json"
    record = json.loads(path.read_text())
    del record["digest"]
    path.write_text(json.dumps(add_digest(record | lie)))
    with pytest.raises(UsageError, match=f"{SHARD}.json is not a record of its shard: {fault}; remove it"):
        read_commit(tmp_path, SHARD)


def test_sizes_of_shards_are_requested_together_and_found_in_order(tmp_path, plan_table, monkeypatch):
    """In an object store each is a request, and a directory has thousands of shards."""
    plan = create_plan(tmp_path, "shard", "clips", {}, plan_table("ab", "cd", "ef", "gh"))
    for name in plan.shard_names():
        commit_shard(tmp_path, name, plan.plan_id, fill)
    barrier, stat = threading.Barrier(4, timeout=5), Path.stat

    def wait(path: Path, **options):
        if path.suffix == ".tar":
            barrier.wait()
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", wait)
    assert [path.name for path, _ in finished_shards(tmp_path, plan)] == list(plan.shard_names())


def test_a_shard_of_another_size_than_its_record_is_not_read(tmp_path, plan_table):
    plan = create_plan(tmp_path, "shard", "clips", {}, plan_table("abcd"))
    commit_shard(tmp_path, SHARD, plan.plan_id, fill)
    with (tmp_path / SHARD).open("ab") as file:
        file.write(b"x")
    with pytest.raises(UsageError, match="has 10241 bytes, not the 10240 of its record; run vidvq verify"):
        list(finished_shards(tmp_path, plan))


def test_a_summary_is_the_sum_of_the_records_and_sweeps_up(tmp_path, plan_table):
    plan = create_plan(tmp_path, "shard", "clips", {}, plan_table("abcd", "efgh"))
    commit_shard(tmp_path, plan.shard_name(0), plan.plan_id, fill)
    commit_shard(tmp_path, plan.shard_name(1), plan.plan_id, fill)
    left = ("clips-000000.tar.tmp.h-1-a", "commits/clips-000001.tar.json.tmp.h-1-a", "summary.json.tmp.h-1-a")
    for name in left:
        (tmp_path / name).write_bytes(b"left by a killed writer")
    summary = summarize(tmp_path, plan)
    assert (summary.planned, summary.ok, summary.shards) == (8, 4, 2)
    assert summary.stats == {"frames": 14}
    assert summary.failed_share == 2 / 8
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["failed"], written["filtered"]) == (
        {"decode_error": {"count": 2, "examples": ["c.mp4: torn"]}},
        {"too_short": {"count": 2, "examples": ["d.mp4: has 2 frames"]}},
    )
    assert written["bytes"] == summary.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert [name for name in files(tmp_path) if ".tmp." in name] == []


@pytest.mark.parametrize("fault", ["uncommitted", "another plan", "an item short"])
def test_records_that_do_not_add_up_make_no_summary(tmp_path, plan_table, fault):
    keys = "abcde" if fault == "an item short" else "abcd"
    plan = create_plan(tmp_path, "shard", "clips", {}, plan_table(keys))
    if fault != "uncommitted":
        commit_shard(tmp_path, SHARD, "elsewhere" if fault == "another plan" else plan.plan_id, fill)
    said = "was made from plan elsewhere, plan.json is" if fault == "another plan" else "is not committed whole"
    with pytest.raises(ValueError, match=f"{SHARD} {said}"):
        summarize(tmp_path, plan)
    assert not (tmp_path / "summary.json").exists()
