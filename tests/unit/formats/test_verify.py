"""Verification of a directory: every kind of damage is found and named."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vidvq.formats.commit import Outcome, ShardDraft, commit_shard
from vidvq.formats.plan import create_plan, write_files
from vidvq.formats.summary import sample_stats, summarize
from vidvq.formats.tar import TarWriter
from vidvq.formats.token_shard import Codebook, TokenInfo, TokenizerCard, encode_tokenizer_card, token_files
from vidvq.formats.verify import verify_folder
from vidvq.storage import add_digest

CARD = TokenizerCard("aa" * 32, "bb" * 32, (Codebook("spatial", 16, 0), Codebook("temporal", 64, 16)), 4, 8, {})
INFO = TokenInfo("/v/a.mp4", 0, (2, 2, 2), 5, 16, 16, 25.0, "1/25", (0, 1, 2, 3, 4), 5)
FIRST, SECOND = "tokens-000000.tar", "tokens-000001.tar"
RECORD = f"commits/{FIRST}.json"


def codes_of(key: str) -> np.ndarray:
    # The greatest code is there, so that a codebook made smaller is noticed.
    return np.array([[[15, 0], [1, ord(key) % 16]], [[63, 0], [1, 2]]])


def make(folder: Path, plan_table: Callable) -> None:
    made_from = {"token_fingerprint": CARD.token_fingerprint}
    files = {"tokenizer.json": encode_tokenizer_card(CARD)}
    plan = create_plan(folder, "tokenize", "tokens", made_from, plan_table("abcd", "ef"), files)
    write_files(folder, plan, files)
    stats = sample_stats(INFO.num_frames, INFO.grid, None)

    def fill(draft: ShardDraft) -> None:
        draft.add("a", token_files(codes_of("a"), INFO, CARD), **stats)
        draft.add("b", token_files(codes_of("b"), INFO, CARD), **stats)
        draft.failed.append(Outcome("c", "decode_error"))
        draft.filtered.append(Outcome("d", "too_short"))

    def fill_second(draft: ShardDraft) -> None:
        for key in "ef":
            draft.add(key, token_files(codes_of(key), INFO, CARD), **stats)

    commit_shard(folder, FIRST, plan.plan_id, fill)
    commit_shard(folder, SECOND, plan.plan_id, fill_second)
    summarize(folder, plan)


@pytest.fixture
def folder(tmp_path, plan_table) -> Path:
    make(tmp_path / "tokens", plan_table)
    return tmp_path / "tokens"


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file, with a digest that fits, as a forger would."""
    data = json.loads(path.read_text())
    digest = data.pop("digest", None)
    change(data)
    path.write_text(json.dumps(add_digest(data) if digest else data))


def rewrite(folder: Path, files: dict[str, bytes], shard: str = FIRST) -> None:
    """Another tar under a shard's name, with a record that agrees with it."""
    with (folder / shard).open("wb") as file:
        tar = TarWriter(file)
        for name, data in files.items():
            tar.add(name, data)
        tar.close()
    data = (folder / shard).read_bytes()

    def agree(record: dict) -> None:
        record["sha256"], record["bytes"] = hashlib.sha256(data).hexdigest(), len(data)
        record["members"] = [[member.name, member.size, member.crc32] for member in tar.members]
        record["ok"] = len({member.key for member in tar.members})
        record["stats"] = {name: count * record["ok"] for name, count in sample_stats(5, (2, 2, 2), None).items()}

    edit(folder / f"commits/{shard}.json", agree)


def sample(key: str, codes: np.ndarray | None = None) -> dict[str, bytes]:
    card = CARD if codes is None else TokenizerCard("", "", (Codebook("joint", 999, 0),), 4, 8, {})
    made = token_files(codes_of("a") if codes is None else codes, INFO, card)
    return {f"{key}.{extension}": made[extension] for extension in sorted(made)}


def test_a_whole_directory_has_no_problem_and_adds_up(folder):
    ticks: list[None] = []
    report = verify_folder(folder, lambda: ticks.append(None))
    assert report.problems == []
    assert (report.items, report.ok, report.failed, report.filtered, report.shards) == (6, 4, 1, 1, 2)
    assert report.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert len(ticks) == 2


# Of a: header of a.json 0, content 512 to about 800, padding to 1024; a.tokens.npy: header 1024, content 1536 to 1680.
@pytest.mark.parametrize(
    ("offset", "named"),
    [
        (0, "a.json: its tar header was changed"),
        (520, "a.json: its content was changed"),
        (1023, "a.json: the padding after it was changed"),
        (1030, "a.tokens.npy: its tar header was changed"),
        (1670, "a.tokens.npy: its content was changed"),
        (2047, "a.tokens.npy: the padding after it was changed"),
        (2570, "b.json: its content was changed"),
        (-1, "the end of the archive was changed"),
    ],
)
def test_a_flipped_byte_is_named_by_file_and_key(folder, flip_byte, offset, named):
    size = (folder / FIRST).stat().st_size
    flip_byte(folder / FIRST, offset % size)
    (problem,) = verify_folder(folder).problems
    assert problem.startswith(f"{FIRST}: {named}")
    assert f"remove {FIRST} and {RECORD}" in problem


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("plan.json", r'"token_fingerprint": "'),
        ("plan.json", r'"items": '),
        ("plan.json", r'"shards": '),
        ("plan.json", r'"prefix": "'),
        ("plan.json", r'"table_sha256": "'),
        ("plan.json", r'"format": "'),
        (RECORD, r'"sha256": "'),
        (RECORD, r'"plan_id": "'),
        (RECORD, r'"ok": '),
        (RECORD, r'"bytes": '),
        (RECORD, r'"members": \[\s*\[\s*"'),
        (RECORD, r'"key": "'),
        (RECORD, r'"format": "'),
        ("tokenizer.json", r'"token_fingerprint": "'),
        ("tokenizer.json", r'"format": "'),
        ("tokenizer.json", r'"size": '),
    ],
)
def test_a_flipped_byte_in_what_is_checked_against_never_goes_as_whole(folder, flip_byte, name, before):
    found = re.search(before, (folder / name).read_text())
    assert found
    flip_byte(folder / name, found.end())
    try:
        problems = verify_folder(folder).problems
    except ValueError as error:
        problems = [str(error)]
    assert problems


@pytest.mark.parametrize("field", ["sha256", "bytes", "ok", "plan_id", "members", "failed", "filtered"])
def test_a_record_that_lies_is_found_out(folder, field):
    lies = {"sha256": "0" * 64, "bytes": 1, "ok": 1, "plan_id": "0" * 64, "members": [], "failed": [], "filtered": []}
    edit(folder / RECORD, lambda record: record.update({field: lies[field]}))
    problems = verify_folder(folder).problems
    assert problems and all(problem.startswith(FIRST) for problem in problems)


@pytest.mark.parametrize(
    ("stats", "said"),
    [
        ({"frames": 10, "tokens": 15}, "has 16 tokens, its record has 15"),
        ({"tokens": 16}, "has 10 frames, its record has 0"),
        ({"frames": 10, "tokens": 16, "scored": 2}, "has 0 scored, its record has 2"),
    ],
)
def test_statistics_that_are_not_those_of_the_samples_are_named(folder, stats, said):
    edit(folder / RECORD, lambda record: record.update(stats=stats))
    remedy = f"remove {RECORD}, then run the same command again"
    assert verify_folder(folder).problems == [f"{FIRST}: {said}; {remedy}"]


@pytest.mark.parametrize(
    ("stage", "prefix", "files", "said"),
    [
        ("shard", "clips", {"json": b"{}"}, "a has ['json']; a clip has json and one of"),
        ("shard", "clips", {"json": b"{}", "mp4": b""}, "a has no readable clip JSON"),
        ("map", "columns", {"json": b"[]"}, "a"),
    ],
)
def test_a_sample_that_is_none_of_its_stage_is_named_though_its_record_fits(
    tmp_path, plan_table, stage, prefix, files, said
):
    plan = create_plan(tmp_path, stage, prefix, {}, plan_table("a"))
    commit_shard(tmp_path, plan.shard_name(0), plan.plan_id, lambda draft: draft.add("a", files))
    (problem,) = verify_folder(tmp_path).problems
    assert f"{prefix}-000000.tar: {said}" in problem


def test_a_summary_of_something_else_is_named(folder):
    edit(folder / "summary.json", lambda summary: summary.update(ok=3))
    said = "summary.json: differs from the sum of the records; run the same command again"
    assert verify_folder(folder).problems == [said]


def test_a_plan_that_was_edited_is_to_be_restored_and_its_shards_kept(folder):
    def change(plan: dict) -> None:
        plan["made_from"]["batch"] = 2
        del plan["checks"]

    edit(folder / "plan.json", change)
    (problem,) = verify_folder(folder).problems
    assert problem.startswith("plan.json: was edited after planning") and problem.endswith("and keep the shards")


def test_a_member_that_claims_more_than_the_file_has_is_not_allocated(folder):
    def lie(record: dict) -> None:
        record["members"][0][1] = 1 << 44
        whole = sum(512 + -(-size // 512) * 512 for _, size, _ in record["members"]) + 1024
        record["bytes"] = -(-whole // 10240) * 10240

    edit(folder / RECORD, lie)
    assert any("a.json: the file ends before it" in problem for problem in verify_folder(folder).problems)


def test_a_missing_shard_is_named(folder):
    (folder / FIRST).unlink()
    assert [problem.split(";")[0] for problem in verify_folder(folder).problems] == [f"{FIRST}: is missing"]


def test_a_missing_record_is_named(folder):
    (folder / RECORD).unlink()
    assert verify_folder(folder).problems == [f"{FIRST}: is not committed; run the same command again"]


def test_a_record_under_another_shards_name_is_found_out(folder):
    (folder / RECORD).write_bytes((folder / f"commits/{SECOND}.json").read_bytes())
    assert any(problem.startswith(FIRST) for problem in verify_folder(folder).problems)


def test_a_stray_tar_is_named(folder):
    (folder / "tokens-000007.tar").write_bytes((folder / FIRST).read_bytes())
    assert verify_folder(folder).problems == ["tokens-000007.tar: is not in the plan; move it elsewhere"]


@pytest.mark.parametrize("name", ["tokens-000000.tar.tmp.h-1-a", "commits/tokens-000000.tar.json.tmp.h-1-a"])
def test_what_a_killed_job_left_is_named(folder, name):
    (folder / name).touch()
    (problem,) = verify_folder(folder).problems
    assert problem.startswith(f"{Path(name).name}: was left by a killed job")


def test_a_tar_where_the_record_has_none_is_named(folder):
    nothing = {"sha256": None, "bytes": 0, "ok": 0, "members": [], "stats": {}}
    nothing["failed"] = [{"key": key, "reason": "x", "detail": ""} for key in "abc"]
    edit(folder / RECORD, lambda record: record.update(nothing))
    (problem,) = verify_folder(folder).problems
    assert problem.startswith(f"{FIRST}: exists, but its record says it is empty")


def test_a_key_that_was_never_planned_is_named(folder):
    rewrite(folder, sample("a") | sample("b") | sample("z"))
    assert verify_folder(folder).problems == [f"{FIRST}: z is not in the plan"]


def test_a_key_of_another_shard_is_named(folder):
    rewrite(folder, sample("a") | sample("b") | sample("e"))
    assert verify_folder(folder).problems == [f"{FIRST}: e is not in the plan"]


def test_a_key_that_is_lost_is_named(folder):
    rewrite(folder, sample("a"))
    assert verify_folder(folder).problems == [f"{FIRST}: b was planned but is not accounted for"]


def test_a_key_with_two_fates_is_named(folder):
    twice = {"key": "a", "reason": "decode_error", "detail": ""}
    edit(folder / RECORD, lambda record: record["failed"].append(twice))
    assert verify_folder(folder).problems == [f"{FIRST}: a occurs twice"]


def test_a_code_out_of_range_is_named_though_every_checksum_is_right(folder):
    codes = codes_of("b")
    codes[0, 1, 0] = 16
    rewrite(folder, sample("a") | sample("b", codes))
    (problem,) = verify_folder(folder).problems
    assert f"{FIRST}: b: code 16 at t=0 h=1 w=0 is out of range; the spatial codebook" in problem


def test_a_sample_that_lacks_a_member_is_named_though_every_checksum_is_right(folder):
    files = sample("a") | sample("b")
    del files["b.json"]
    rewrite(folder, files)
    (problem,) = verify_folder(folder).problems
    assert f"{FIRST}: b has ['tokens.npy']" in problem


@pytest.mark.parametrize(
    ("planned", "recorded"),
    [
        (("too_short", "has 2 frames"), ("failed", "decode_error", "has 2 frames")),
        (("too_short", "has 2 frames"), ("failed", "too_short", "has 3 frames")),
        (("too_short", "has 2 frames"), ("filtered", "too_short", "has 2 frames")),
        (("removed", "was removed"), ("failed", "removed", "was removed")),
        (("too_short", "has 2 frames"), None),
        (("missing", "https://u:secret@host/a.mp4"), ("failed", "missing", "https://u:secret@host/a.mp4")),
    ],
)
def test_an_outcome_that_was_planned_otherwise_is_named(tmp_path, plan_table, planned, recorded):
    table = plan_table("a").append_column("reason", [[planned[0]]]).append_column("detail", [[planned[1]]])
    plan = create_plan(tmp_path, "generate", "other", {}, table)

    def fill(draft: ShardDraft) -> None:
        if recorded is None:
            draft.add("a", {"json": b"{}"})
        else:
            (draft.failed if recorded[0] == "failed" else draft.filtered).append(Outcome("a", *recorded[1:]))

    shard = plan.shard_name(0)
    commit_shard(tmp_path, shard, plan.plan_id, fill)
    verdict = "filtered" if planned[0] == "removed" else "failed"
    was = recorded[0] if recorded else "ok"
    problem = f"{shard}: a is {was} in the record, {verdict}({planned[0]}) in the plan"
    # Records hide the credentials that a plan needs.
    assert verify_folder(tmp_path).problems == ([] if (verdict, *planned) == recorded else [problem])


def test_a_card_of_another_tokenizer_is_found_out(folder):
    edit(folder / "tokenizer.json", lambda card: card.update(token_fingerprint="cc" * 32))
    problems = verify_folder(folder).problems
    assert any("tokenizer.json" in problem and "cccccccccccc" in problem for problem in problems)


def test_another_file_that_is_missing_or_changed_is_named(tmp_path, plan_table):
    create_plan(tmp_path, "map", "other", {}, plan_table(), {"function.json": b"{}"})
    remedy = "restore it from a copy, or run the same command again"
    assert verify_folder(tmp_path).problems == [f"function.json: is missing; {remedy}"]
    (tmp_path / "function.json").write_bytes(b"{ }")
    assert verify_folder(tmp_path).problems == [f"function.json: was changed after planning; {remedy}"]


def test_a_directory_without_a_plan_cannot_be_verified(tmp_path):
    with pytest.raises(ValueError, match="has no plan.json"):
        verify_folder(tmp_path)


def test_a_directory_of_clips_is_whole_until_a_byte_flips(clips_dir, copy_of, flip_byte):
    assert verify_folder(clips_dir).problems == []
    copy = copy_of(clips_dir)
    shard = copy / "clips-000001.tar"
    flip_byte(shard, shard.stat().st_size // 2)
    (problem,) = verify_folder(copy).problems
    assert problem.startswith("clips-000001.tar: carphone-") and "its content was changed" in problem


def test_frames_that_a_record_counts_wrong_are_named(clips_dir, copy_of):
    copy = copy_of(clips_dir)
    edit(copy / "commits/clips-000001.tar.json", lambda record: record["stats"].update(frames=1))
    (problem,) = verify_folder(copy).problems
    assert problem.startswith("clips-000001.tar: has 36 frames, its record has 1; remove commits/")
