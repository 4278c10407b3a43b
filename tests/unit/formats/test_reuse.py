"""Samples of an older generation of a shard: only those that are whole, and whose rows have not changed, are copied."""

from vidvq.formats.commit import ShardDraft, commit_shard
from vidvq.formats.reuse import reusable_samples
from vidvq.formats.rows import PlanRow

OLD, NEW = "clips-000000.tar", "clips-000000-r1.tar"


def fill(content: bytes):
    def fill(draft: ShardDraft) -> None:
        for key in "abc":
            draft.add(key, {"json": key.encode(), "mp4": content})

    return fill


def test_samples_with_older_rows_are_copied_from_the_newest_committed_generation(tmp_path):
    older = [(OLD, 0), (NEW, 1)]
    rows = [
        PlanRow(key="a", generation=0),
        PlanRow(key="b", generation=1),
        PlanRow(key="c", generation=0, reason="removed"),
        PlanRow(key="d", generation=0),
    ]
    assert reusable_samples(tmp_path, older, rows) == {}
    commit_shard(tmp_path, OLD, "plan", fill(b"old"))
    assert reusable_samples(tmp_path, older, rows) == {"a": {"json": b"a", "mp4": b"old"}}
    commit_shard(tmp_path, NEW, "plan", fill(b"new"))
    found = {key: {"json": key.encode(), "mp4": b"new"} for key in "ab"}
    assert reusable_samples(tmp_path, older, rows) == found


def test_a_damaged_or_missing_sample_is_made_again(tmp_path, flip_byte):
    rows = [PlanRow(key=key) for key in "abc"]
    commit_shard(tmp_path, OLD, "plan", fill(b"old"))
    # The mp4 of a, then the header of b.json.
    for offset, kept in ((1536, "bc"), (2048, "")):
        flip_byte(tmp_path / OLD, offset)
        assert "".join(reusable_samples(tmp_path, [(OLD, 0)], rows)) == kept
    (tmp_path / OLD).unlink()
    assert reusable_samples(tmp_path, [(OLD, 0)], rows) == {}
