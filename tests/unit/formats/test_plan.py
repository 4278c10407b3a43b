"""Plans: made once, and never resumed with something else."""

import json
from random import Random
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidvq.corpus.source import Source
from vidvq.errors import JobStopped, UsageError
from vidvq.formats import arrow
from vidvq.formats import plan as plans
from vidvq.formats.arrow import encode_table, keys_of
from vidvq.formats.plan import PlanHeader, create_plan, extend_plan, read_plan, write_files
from vidvq.formats.rows import RowCodec
from vidvq.jobs.rows import VideoRow
from vidvq.storage import files as storage
from vidvq.storage import sha256_bytes

MADE_FROM = {"inputs": {"count": 2, "sha256": "aa"}, "clip": {"fps": 10, "num_frames": 9}}


@pytest.fixture
def plan_dir(tmp_path, plan_table, ensure_plan):
    out = tmp_path / "out"
    ensure_plan(out, "shard", "clips", MADE_FROM, lambda: plan_table("abc", "d"))
    return out


def never():
    raise AssertionError("a plan that is there must not be built again")


def test_a_plan_reads_back_as_it_was_made(plan_dir):
    plan = read_plan(plan_dir)
    assert plan.made_from == MADE_FROM
    assert [(name, keys_of(table)) for name, table in plan.shard_tables()] == [
        ("clips-000000.tar", ["a", "b", "c"]),
        ("clips-000001.tar", ["d"]),
    ]
    assert sorted(path.name for path in plan_dir.iterdir()) == ["plan.json", "plan.parquet"]


def test_resuming_takes_the_plan_that_is_there(plan_dir, ensure_plan):
    before = {path.name: path.stat().st_mtime_ns for path in plan_dir.iterdir()}
    plan = ensure_plan(plan_dir, "shard", "clips", MADE_FROM, never)
    assert plan.plan_id == read_plan(plan_dir).plan_id
    assert {path.name: path.stat().st_mtime_ns for path in plan_dir.iterdir()} == before


def test_the_same_inputs_give_the_same_plan_elsewhere(plan_dir, tmp_path, plan_table, ensure_plan):
    ensure_plan(tmp_path / "two", "shard", "clips", MADE_FROM, lambda: plan_table("abc", "d"))
    for name in ("plan.json", "plan.parquet"):
        assert (plan_dir / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip": {"fps": 12, "num_frames": 9}}, "clip.fps was 10, now 12"),
        ({"clip": {"num_frames": 9}}, "clip.fps was 10, now absent"),
        ({"extra": True}, "extra was absent, now true"),
        ({"inputs": {"count": 3, "sha256": "bb"}}, 'inputs.count was 2, now 3; inputs.sha256 was "aa", now "bb"'),
    ],
)
def test_a_plan_made_from_something_else_is_refused_with_what_differs(plan_dir, change, said, ensure_plan):
    with pytest.raises(ValueError) as error:
        ensure_plan(plan_dir, "shard", "clips", MADE_FROM | change, never)
    assert said in str(error.value)
    assert "--checkpoint" not in str(error.value)
    assert ("to change the inputs, --add takes" in str(error.value)) == ("inputs" in change)


def test_many_differences_are_counted(plan_dir, ensure_plan):
    change = {f"field{index}": index for index in range(20)}
    with pytest.raises(ValueError, match="and 12 more"):
        ensure_plan(plan_dir, "shard", "clips", MADE_FROM | change, never)


def test_what_hides_behind_a_hash_is_explained_first(plan_dir, ensure_plan):
    change = {"inputs": {"count": 2, "sha256": "bb"}}
    with pytest.raises(ValueError, match="made from other inputs or settings: x.mp4 was changed; inputs.sha256"):
        ensure_plan(plan_dir, "shard", "clips", MADE_FROM | change, never, ["x.mp4 was changed"])


def test_the_output_of_another_verb_is_refused(plan_dir, ensure_plan):
    with pytest.raises(ValueError, match="holds the output of vidvq shard"):
        ensure_plan(plan_dir, "tokenize", "tokens", MADE_FROM, never)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "clips-000000.tar", "commits"])
def test_a_directory_with_other_files_is_refused_untouched(tmp_path, name, plan_table):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"found {name}"):
        create_plan(tmp_path, "shard", "clips", MADE_FROM, plan_table("abc"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_plan_killed_half_way_is_made_again(tmp_path, plan_dir, plan_table, ensure_plan, monkeypatch):
    monkeypatch.setattr(storage, "_OTHER_WRITER_S", 0.2)
    out = tmp_path / "killed"
    out.mkdir()
    (out / "plan.parquet").write_bytes(b"of another run")
    (out / "plan.parquet.tmp.h-1-a").write_bytes(b"half")
    (out / "plan.json.tmp.h-1-a").write_bytes(b"half")
    ensure_plan(out, "shard", "clips", MADE_FROM, lambda: plan_table("abc", "d"))
    assert read_plan(out).plan_id == read_plan(plan_dir).plan_id
    assert sorted(path.name for path in out.iterdir()) == ["plan.json", "plan.parquet"]


def test_a_marker_that_a_killed_preflight_left_stops_nothing(tmp_path, plan_table, ensure_plan):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".vidvq-preflight-0123abcd").touch()
    ensure_plan(out, "shard", "clips", MADE_FROM, lambda: plan_table("abc"))
    assert read_plan(out).num_items == 3


def test_who_is_overtaken_while_planning_takes_the_plan_that_stands(tmp_path, plan_table, ensure_plan):
    def overtaken():
        ensure_plan(tmp_path / "out", "shard", "clips", MADE_FROM, lambda: plan_table("abc", "d"))
        return plan_table("abc", "d")

    ensure_plan(tmp_path / "out", "shard", "clips", MADE_FROM, overtaken)
    assert read_plan(tmp_path / "out").num_items == 4


def test_of_two_drivers_with_different_rows_one_has_its_plan_with_its_rows(tmp_path, plan_table, monkeypatch):
    """A video that one driver could read and the other could not gives different rows."""
    create_once, others = plans.create_once, []

    def between_table_and_header(path, *given):
        if path.name == "plan.json" and not others:
            other = Thread(target=create_plan, args=(tmp_path, "shard", "clips", MADE_FROM, plan_table("xyz")))
            others.append(other)
            other.start()
            other.join(0.5)
        return create_once(path, *given)

    monkeypatch.setattr(plans, "create_once", between_table_and_header)
    plan = create_plan(tmp_path, "shard", "clips", MADE_FROM, plan_table("abc", "d"))
    others[0].join()
    assert plan.num_items == read_plan(tmp_path).num_items == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.parquet"]


def test_who_is_overtaken_by_another_plan_is_refused_and_harms_nothing(tmp_path, plan_table, ensure_plan):
    def overtaken():
        ensure_plan(tmp_path / "out", "shard", "clips", {"other": 1}, lambda: plan_table("xyz"))
        return plan_table("abc", "d")

    with pytest.raises(ValueError, match="was made from other inputs or settings"):
        ensure_plan(tmp_path / "out", "shard", "clips", MADE_FROM, overtaken)
    assert read_plan(tmp_path / "out").num_items == 3


def test_an_empty_directory_has_no_plan(tmp_path):
    with pytest.raises(ValueError, match="has no plan.json"):
        read_plan(tmp_path)


@pytest.mark.parametrize("position", [0.0, 0.3, 0.6, 0.99])
def test_a_table_that_was_tampered_with_is_refused(plan_dir, flip_byte, position):
    table = plan_dir / "plan.parquet"
    flip_byte(table, int(table.stat().st_size * position))
    with pytest.raises(ValueError, match=r"plan\.parquet is missing or not the one"):
        read_plan(plan_dir)


def test_a_table_that_is_gone_is_missed(plan_dir):
    (plan_dir / "plan.parquet").unlink()
    with pytest.raises(ValueError, match=r"plan\.parquet is missing"):
        read_plan(plan_dir)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other/1"}', '{"format": "vidvq.plan/1"}'])
def test_a_damaged_header_is_refused_by_name(plan_dir, content):
    (plan_dir / "plan.json").write_text(content)
    with pytest.raises(ValueError, match="plan.json"):
        read_plan(plan_dir)


def edit(plan_dir, change, keep_checks=True, name="plan.json"):
    header = json.loads((plan_dir / name).read_text())
    change(header)
    if not keep_checks:
        del header["checks"]
    (plan_dir / name).write_text(json.dumps(header))


def test_an_edited_setting_is_named(plan_dir):
    edit(plan_dir, lambda header: header["made_from"]["clip"].update(fps=11))
    with pytest.raises(ValueError, match=r"made_from\.clip\.fps was edited after planning \(now 11\); set it back"):
        read_plan(plan_dir)


def test_an_edited_header_of_an_older_version_is_another_plan(plan_dir):
    before = read_plan(plan_dir).plan_id
    edit(plan_dir, lambda header: header["made_from"]["clip"].update(fps=11), keep_checks=False)
    assert read_plan(plan_dir).plan_id != before


def test_a_plan_without_checks_is_the_same_plan(plan_dir):
    before = read_plan(plan_dir).plan_id
    edit(plan_dir, lambda header: None, keep_checks=False)
    assert read_plan(plan_dir).plan_id == before


def deep(levels):
    value: object = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prefix": "../victim/clips"}, "prefix"),
        ({"prefix": "/etc/clips"}, "prefix"),
        ({"prefix": "a\u0000b"}, "prefix"),
        ({"table": "../plan.parquet"}, "table"),
        ({"table": "other.parquet"}, "is inconsistent with itself"),
        ({"items": 5}, "do not match the 5 items"),
        ({"items": "4"}, "items='4'"),
        ({"items": True}, "items=True"),
        ({"shards": 1}, "rows of the plan"),
        ({"shards": -1}, "shards=-1"),
        ({"shards": 10**15}, "shards="),
        ({"first_shard": 1}, "is inconsistent with itself"),
        ({"made_from": []}, "made_from"),
        ({"made_from": deep(70)}, "nested more than"),
        ({"made_from": {"a": json.loads("[" * 70 + "]" * 70)}}, "nested more than"),
        ({"files": {"../x": "a" * 64}}, "files"),
        ({"parent": 7}, "parent"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_forged_header_is_refused_in_one_line(plan_dir, fields, said):
    edit(plan_dir, lambda header: header.update(fields), keep_checks=False)
    with pytest.raises(ValueError, match=r"plan") as error:
        read_plan(plan_dir)
    assert said in str(error.value) and "\n" not in str(error.value)


def forge_table(plan_dir, table: pa.Table | bytes) -> None:
    data = encode_table(table) if isinstance(table, pa.Table) else table
    (plan_dir / "plan.parquet").write_bytes(data)
    edit(plan_dir, lambda header: (header.update(table_sha256=sha256_bytes(data)), header.pop("checks", None)))


TEXTS = {name: pa.array(list("abcd")) for name in ("key", "reason", "detail")}


@pytest.mark.parametrize(
    "columns",
    [
        {"key": pa.array([b"\xff", b"\xfe", b"\xfd", b"\xfc"]).view(pa.string())},
        {"key": pa.array([1, 2, 3, 4])},
        {"key": pa.array(["a", "b", None, "d"])},
        {"key": pa.array(list("abca"))},
        {"shard": pa.array([0, 0, None, 1], pa.int32())},
        {"shard": pa.array([-1, 0, 0, 1], pa.int32())},
        {"shard": pa.array([1, 0, 0, 1], pa.int32())},
        {"reason": pa.array([["x"]] * 4)},
        {"detail": pa.array([1] * 4)},
        {"verdict": pa.array([b"x"] * 4)},
        {"generation": pa.array([0] * 4, pa.int32())},
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_a_forged_table_is_refused_in_one_line(plan_dir, plan_table, columns):
    shard = plan_table("abc", "d")["shard"]
    forge_table(plan_dir, pa.table({**TEXTS, "shard": shard, **columns}))
    with pytest.raises(UsageError, match=r"plan\.parquet|rows of the plan") as error:
        read_plan(plan_dir)
    assert "\n" not in str(error.value)


def test_a_table_that_unfolds_to_all_memory_is_not_read(plan_dir, plan_table, monkeypatch):
    monkeypatch.setattr(arrow, "_MIN_UNPACKED", 0)
    buffer, table = pa.BufferOutputStream(), pa.table({"key": ["a" * 10_000] * 100, "shard": pa.array([0] * 100, "i4")})
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    forge_table(plan_dir, buffer.getvalue().to_pybytes())
    monkeypatch.setattr(arrow, "_MAX_UNPACKED", 100)
    with pytest.raises(UsageError, match="would decompress from"):
        read_plan(plan_dir)


def test_any_damage_of_a_table_whose_digest_fits_is_one_line(plan_dir, plan_table):
    whole, random = encode_table(plan_table("abc", "d")), Random(0)
    for _ in range(200):
        data = bytearray(whole)
        data[random.randrange(len(data))] = random.randrange(256)
        forge_table(plan_dir, bytes(data))
        try:
            read_plan(plan_dir)
        except UsageError as error:
            assert "\n" not in str(error)


def test_a_generation_of_another_plan_is_refused(plan_dir, plan_table):
    extend_plan(plan_dir, read_plan(plan_dir), MADE_FROM, plan_table("", "", "e"))
    assert keys_of(read_plan(plan_dir).table) == list("abcde")
    assert list(read_plan(plan_dir).shard_names()) == [f"clips-00000{index}.tar" for index in range(3)]
    edit(plan_dir, lambda header: header["made_from"].update(clip={}), keep_checks=False)
    with pytest.raises(UsageError, match=r"plan-0001\.json does not follow the plan before it"):
        read_plan(plan_dir)


@pytest.mark.parametrize(
    "fields", [{"prefix": "tokens"}, {"stage": "map"}, {"files": {"a": "0" * 64}}, {"items": 3}, {"shards": 1}]
)
def test_a_generation_that_contradicts_the_one_before_it_is_refused(plan_dir, plan_table, fields):
    for key in "ef":
        plan = read_plan(plan_dir)
        extend_plan(plan_dir, plan, MADE_FROM, plan_table(*[""] * plan.num_shards, key))
    edit(plan_dir, lambda header: header.update(fields), keep_checks=False, name="plan-0001.json")
    parent = {"parent": plans._read_header(plan_dir / "plan-0001.json").plan_id}
    edit(plan_dir, lambda header: header.update(parent), keep_checks=False, name="plan-0002.json")
    with pytest.raises(UsageError, match=r"plan-0001\.json is inconsistent with itself or its parent"):
        read_plan(plan_dir)


def test_a_generation_may_have_columns_that_an_older_vidvq_did_not_write(plan_dir, plan_table):
    extend_plan(plan_dir, read_plan(plan_dir), MADE_FROM, plan_table("", "d", "e").append_column("reason", [["", "x"]]))
    assert read_plan(plan_dir).table["reason"].to_pylist() == [None, None, None, "", "x"]


def test_a_driver_that_extends_an_older_plan_stops(plan_dir, plan_table):
    older = read_plan(plan_dir)
    extend_plan(plan_dir, older, MADE_FROM, plan_table("", "", "e"))
    with pytest.raises(JobStopped, match="was changed by another driver in the meantime"):
        extend_plan(plan_dir, older, MADE_FROM, plan_table("", "", "f"))
    assert keys_of(read_plan(plan_dir).table) == list("abcde")


@pytest.mark.parametrize("damage", [None, b"dam"])
def test_other_files_are_written_as_planned_or_not_at_all(tmp_path, plan_table, damage):
    files, path = {"tokenizer.json": b"card"}, tmp_path / "tokenizer.json"
    plan = create_plan(tmp_path, "tokenize", "tokens", MADE_FROM, plan_table("a"), files)
    if damage:
        path.write_bytes(damage)
    with pytest.raises(UsageError, match="another one; restore it from a copy"):
        write_files(tmp_path, plan, {"tokenizer.json": b"other"})
    assert (path.read_bytes() if path.exists() else None) == damage
    write_files(tmp_path, plan, files)
    assert path.read_bytes() == b"card"
    # A card that is whole is kept, whatever this job would write.
    write_files(tmp_path, plan, {"tokenizer.json": b"other"})
    assert path.read_bytes() == b"card"


def test_a_header_is_hashed_once_for_all_shards(plan_dir, monkeypatch):
    plan, encode, hashed = read_plan(plan_dir), PlanHeader.to_json, []
    monkeypatch.setattr(PlanHeader, "to_json", lambda header: hashed.append(1) or encode(header))
    assert {plan.id_of(index) for index in (0, 1, 0, 1)} == {plan.plan_id} == {*plan.ids}
    assert len(hashed) <= 1


def test_json_nested_beyond_the_parser_is_refused_in_one_line(plan_dir):
    (plan_dir / "plan.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="is not JSON"):
        read_plan(plan_dir)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("uri", pa.array([1, 2]), "column uri of a plan is int64, not string"),
        ("uri", pa.array([None, "/b.mp4"]), "a row of a plan has no uri"),
        ("uri", None, "a row of a plan has no uri"),
        ("offset", pa.array(["1", "2"]), "column offset of a plan is string, not int64"),
        ("start_s", pa.array([[1.0], []]), "column start_s of a plan is list<"),
    ],
)
def test_rows_of_other_columns_than_those_of_the_stage_are_refused(name, values, said):
    codec = RowCodec(VideoRow)
    rows = [VideoRow(key=key, source=Source(f"/{key}.mp4"), shard=0) for key in "ab"]
    table = codec.to_table(rows)
    assert list(codec.from_table(table)) == rows
    at = table.column_names.index(name)
    table = table.drop_columns([name]) if values is None else table.set_column(at, name, values)
    with pytest.raises(UsageError, match=said):
        list(codec.from_table(table))
