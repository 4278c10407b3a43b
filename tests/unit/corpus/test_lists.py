"""Lists: common column names, several time formats, videos inside parquet files."""

import json
import math
from collections import Counter
from dataclasses import replace
from datetime import time, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidvq.corpus.fetch import local_file
from vidvq.corpus.inputs import list_sources
from vidvq.corpus.lists import ListPolicy, read_list
from vidvq.corpus.source import Source
from vidvq.errors import UsageError
from vidvq.formats.clip_shard import ClipInfo, clip_files, parse_clip_info
from vidvq.video.limits import Limits

CLIP = ClipInfo("a.mp4", 0, "1/25", (0,), 1, 25.0, 8, 8, "none", {})
VIDEOS = {"a.mp4": b"first", "b.mp4": b"second"}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, data in VIDEOS.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def read(path: Path, policy: ListPolicy | None = None) -> list[Source]:
    return list(read_list(path, policy or ListPolicy(), Counter()))


def names(path: Path) -> list[str]:
    return [Path(source.uri).name for source in read(path)]


def content(source: Source) -> bytes:
    with local_file(source, Limits()) as path:
        return path.read_bytes()


def test_a_byte_order_mark_and_windows_line_ends_are_ignored(folder):
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfa.mp4\r\nb.mp4\r\n")
    assert names(folder / "list.txt") == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_a_name_that_is_not_utf8_fails_only_its_row(folder, suffix):
    lines = [b"a.mp4", b"na\xefve.mp4", b"b.mp4"]
    if suffix == "csv":
        lines = [b"path", *lines]
    elif suffix == "jsonl":
        lines = [b'{"path": "%s"}' % line for line in lines]
    (folder / f"list.{suffix}").write_bytes(b"\n".join(lines))
    first, bad, last = read(folder / f"list.{suffix}")
    assert not first.failure and not last.failure
    assert bad.uri == str(folder / r"na\xefve.mp4") and bad.failure[0] == "bad_name"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:01.5", 1.5),
        ("01:02:03", 3723.0),
        ("2:05", 125.0),
        ("75:00", 4500.0),
        ("00:00:01,25", 1.25),
        ("12", 12.0),
        ("1.5", 1.5),
        ("", None),
        ("nan", None),
    ],
)
def test_times_are_seconds_or_clock_times(folder, text, seconds):
    (folder / "list.csv").write_text(f'path,start_s,end_s\nb.mp4,"{text}",99999\n')
    (source,) = read(folder / "list.csv")
    assert (source.start_s, source.end_s) == (seconds, 99999.0)


@pytest.mark.parametrize("value", [timedelta(seconds=1.5), time(0, 0, 1, 500_000), 1.5])
def test_numeric_times_of_a_table_keep_their_type(folder, value):
    pq.write_table(pa.table({"path": ["a.mp4"], "start": [value]}), folder / "list.parquet")
    (source,) = read(folder / "list.parquet")
    assert source.start_s == 1.5


def test_an_invalid_time_is_quoted_in_the_error(folder):
    (folder / "list.csv").write_text("path,start_s,end_s\na.mp4,,\na.mp4,one,2\n")
    whole, bad = read(folder / "list.csv")
    assert bad.failure == ("bad_range", "has start_s 'one'; needs seconds or HH:MM:SS.mmm")
    assert bad.identity != whole.identity


def test_each_unreadable_range_of_a_video_is_an_entry(tmp_path):
    (tmp_path / "list.csv").write_text("uri,start_s\na.mp4,one\na.mp4,two\nb.mp4,one\na.mp4,one\na.mp4,\n")
    found = list(list_sources([str(tmp_path / "list.csv")], ListPolicy()))
    assert len({source.identity for source in found}) == 4
    assert [source.failure and source.failure[1][:16] for source in found] == [
        "has start_s 'one",
        "has start_s 'two",
        "has start_s 'one",
        None,
    ]


@pytest.mark.parametrize(
    "header", ["video,start,end", "URL,start_s,end_s", "video_path,start_time,end_time", "contentUrl,begin,stop"]
)
def test_common_column_names_are_recognized(folder, header, capsys):
    (folder / "list.csv").write_text(f"{header}\nb.mp4,1,2\n")
    (source,) = read(folder / "list.csv")
    assert (Path(source.uri).name, source.start_s, source.end_s) == ("b.mp4", 1.0, 2.0)
    assert "not used" not in capsys.readouterr().err


def test_unused_columns_that_look_like_a_range_are_reported(folder, capsys):
    (folder / "list.csv").write_text("video,start_frame,t1,caption\nb.mp4,25,50,x\n")
    (source,) = read(folder / "list.csv")
    assert source.start_s is None
    assert "not used: start_frame, t1; set lists.start and lists.end" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("header", "reported"),
    [("video,start,duration", True), ("video,duration", False), ("video,start,end,duration", False)],
)
def test_a_duration_beside_a_start_is_reported(folder, capsys, header, reported):
    (folder / "list.csv").write_text(f"{header}\nb.mp4,2,5,3\n")
    read(folder / "list.csv")
    assert ("not used: duration" in capsys.readouterr().err) == reported


def test_a_range_can_be_disabled(folder):
    (folder / "list.csv").write_text("video,start,end\nb.mp4,25,50\n")
    (source,) = read(folder / "list.csv", ListPolicy(start="", end=""))
    assert (source.start_s, source.end_s) == (None, None)


def test_a_line_of_jsonl_may_have_columns_that_the_first_lacks(folder, capsys):
    rows = [{"path": "a.mp4"}, {"path": "b.mp4", "url": "a.mp4", "start": 1, "end": 2, "caption": "x"}]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"t0": 3} | rows[0]]))
    for policy in (ListPolicy(carry=("caption",)), ListPolicy(carry=("caption",), start="start", uri="path")):
        first, second, third = read(folder / "list.jsonl", policy)
        assert [Path(source.uri).name for source in (first, second, third)] == ["a.mp4", "b.mp4", "a.mp4"]
        assert (second.start_s, second.end_s, json.loads(second.carried)) == (1.0, 2.0, {"caption": "x"})
        assert (first.start_s, first.carried) == (None, "")
    assert "not used" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="no column 'label' .* has path, url, start, end, caption, t0"):
        read(folder / "list.jsonl", ListPolicy(carry=("label",)))


def test_a_range_that_a_later_line_of_jsonl_has_is_reported_if_it_is_not_used(folder, capsys):
    (folder / "list.jsonl").write_text('{"path": "a.mp4"}\n{"path": "b.mp4", "t0": 1, "t1": 2}\n')
    read(folder / "list.jsonl")
    assert "not used: t0, t1" in capsys.readouterr().err.replace("\n", " ")


def test_spaces_around_the_names_of_columns_are_ignored(folder):
    (folder / "list.csv").write_text("path, start ,\tend, caption\nb.mp4, 1, 2, x\n")
    (source,) = read(folder / "list.csv", ListPolicy(carry=("caption",)))
    assert (source.start_s, source.end_s, json.loads(source.carried)) == (1.0, 2.0, {"caption": " x"})


def test_a_cell_may_be_as_long_as_a_line(folder):
    (folder / "list.csv").write_text(f"path,words\na.mp4,{'x' * 200_000}\nb.mp4,y\n")
    assert names(folder / "list.csv") == ["a.mp4", "b.mp4"]


def test_nan_is_none(folder):
    rows = {"path": ["a.mp4", "b.mp4"], "start_s": [math.nan, 1.0], "score": [math.nan, 2.0]}
    pq.write_table(pa.table(rows), folder / "list.parquet")
    first, second = read(folder / "list.parquet", ListPolicy(carry=("score",)))
    assert (first.start_s, first.carried) == (None, "")
    assert (second.start_s, json.loads(second.carried)) == (1.0, {"score": 2.0})


def test_rows_without_a_video_are_counted(folder):
    (folder / "list.jsonl").write_text('{"path": "a.mp4"}\n{"path": NaN}\n{"path": " "}\n{"path": null}\n')
    passed: Counter[str] = Counter()
    assert len(list(read_list(folder / "list.jsonl", ListPolicy(), passed))) == 1
    assert passed == {"rows without a video": 3}


def test_paths_of_a_binary_column_are_read(folder):
    pq.write_table(pa.table({"path": pa.array([b"a.mp4", b"na\xefve.mp4", b"x" * 5000])}), folder / "list.parquet")
    first, second, third = read(folder / "list.parquet")
    assert content(first) == b"first"
    assert second.failure[0] == "bad_name" and second.uri.endswith(r"na\xefve.mp4")
    assert third.failure[0] == "bad_name" and "5000 bytes" in third.failure[1]


def test_what_decides_what_is_listed_is_the_identity_of_a_policy():
    same = ListPolicy(allow_private=True)
    assert same.identity() == ListPolicy().identity() == {"uri": None, "start": None, "end": None, "carry": []}
    assert ListPolicy(where="a=1", roots=("/a",)).identity() == same.identity() | {"where": "a=1", "roots": ["/a"]}


def test_fields_of_a_column_are_carried(folder):
    rows = {"path": ["a.mp4"], "meta": [{"tags": ["x"], "score": 1}]}
    pq.write_table(pa.table(rows), folder / "list.parquet")
    (source,) = read(folder / "list.parquet", ListPolicy(carry=("meta",)))
    assert json.loads(source.carried) == {"meta": {"tags": ["x"], "score": 1}}


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()], ids=str)
def test_videos_inside_a_parquet_file_are_read_in_place(folder, binary):
    kind = pa.struct({"bytes": binary, "path": pa.string()})
    rows = [
        {"bytes": b"inside", "path": "a.mp4"},
        {"bytes": b"inside too", "path": "a.mp4"},
        {"bytes": None, "path": "b.mp4"},
        {"bytes": b"nameless", "path": None},
        {"bytes": None, "path": None},
    ]
    path = folder / "train.parquet"
    pq.write_table(pa.table({"video": pa.array(rows, kind), "caption": list("vwxyz")}), path, row_group_size=2)
    sources = list(list_sources([str(path)], ListPolicy(carry=("caption",))))
    assert [content(source) for source in sources] == [b"inside", b"inside too", b"second", b"nameless"]
    assert [json.loads(source.carried)["caption"] for source in sources] == list("vwxy")
    assert len({source.identity for source in sources}) == 4


@pytest.mark.parametrize(
    "place",
    [
        "file:///etc/passwd",
        "local:///etc/passwd",
        "ftp://h/x.mp4",
        "s3::http://h/x",
        "https://host/x::file:///etc/passwd",
        "memory://x.mp4",
        "data://x",
    ],
)
def test_a_list_names_no_url_of_another_scheme(folder, place):
    (folder / "list.txt").write_text(f"a.mp4\n{place}\nhttps://host/x.mp4\n")
    one, other, third = read(folder / "list.txt")
    assert (one.failure, third.failure) == (None, None)
    assert other.failure and other.failure[0] == "not_allowed"


def test_local_files_of_a_list_are_below_the_roots(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.mp4"
    elsewhere.write_bytes(b"x")
    (folder / "link.mp4").symlink_to(elsewhere)
    (folder / "list.txt").write_text(f"a.mp4\n{elsewhere}\n../x.mp4\nlink.mp4\n")
    found = read(folder / "list.txt", ListPolicy(roots=(str(folder),)))
    assert [source.failure and source.failure[0] for source in found] == [None, *["not_allowed"] * 3]
    assert all(source.failure is None for source in read(folder / "list.txt"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.large_binary()], ids=str)
def test_a_text_that_every_row_of_a_small_parquet_file_repeats_takes_no_memory(folder, kind):
    long = "x" * (2 << 20)
    table = pa.table({"path": ["a.mp4"] * 64, "caption": pa.array([long] * 64, kind)})
    try:
        pq.write_table(table, folder / "list.parquet", compression="zstd")
    except pa.ArrowNotImplementedError:
        pytest.skip(f"pyarrow {pa.__version__} cannot write {kind}")
    assert (folder / "list.parquet").stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="column caption has a text of 2097152 bytes"):
        read(folder / "list.parquet", ListPolicy(carry=("caption",)))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("us", tz="Mars/Olympus"), 1),
        (pa.timestamp("ns"), 123456789),
        (pa.timestamp("us"), 1 << 62),
        (pa.date32(), (1 << 31) - 1),
    ],
    ids=str,
)
def test_a_column_that_is_not_used_is_not_read(folder, kind, value):
    table = pa.table({"created": pa.array([value], kind), "path": ["a.mp4"]})
    pq.write_table(table, folder / "list.parquet")
    assert names(folder / "list.parquet") == ["a.mp4"]


@pytest.mark.parametrize(
    ("kind", "value", "seconds"),
    [
        (pa.time64("ns"), 1_500_000_001, 1.500000001),
        (pa.duration("ns"), 1_500_000_001, 1.500000001),
        (pa.duration("ms"), 1 << 62, float(1 << 62) / 1000),
    ],
    ids=str,
)
def test_times_that_python_cannot_hold_are_read(folder, kind, value, seconds):
    pq.write_table(pa.table({"path": ["a.mp4"], "start": pa.array([value], kind)}), folder / "list.parquet")
    (source,) = read(folder / "list.parquet")
    assert source.start_s == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(("name", "cell"), [("list.csv", ","), ("list.tsv", "\t")])
def test_two_columns_of_one_name_in_a_text_are_refused_if_they_are_used(folder, name, cell):
    rows = [["path", "note", "note"], ["a.mp4", "first", "second"]]
    (folder / name).write_text("".join(cell.join(row) + "\n" for row in rows))
    assert len(read(folder / name)) == 1
    with pytest.raises(ValueError, match="has several columns 'note'; rename all but one"):
        read(folder / name, ListPolicy(carry=("note",)))
    with pytest.raises(ValueError, match="has several columns 'note'"):
        read(folder / name, ListPolicy(where="note = 'first'"))


def test_two_columns_of_one_name_are_refused(folder):
    columns = [pa.array(["a.mp4"]), pa.array(["b.mp4"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["path", "path"]), folder / "list.parquet")
    with pytest.raises(ValueError, match="has several columns 'path'"):
        read(folder / "list.parquet")


def test_nanoseconds_are_carried_as_text(folder):
    table = pa.table({"path": ["a.mp4"], "created": pa.array([123456789], pa.timestamp("ns"))})
    pq.write_table(table, folder / "list.parquet")
    (source,) = read(folder / "list.parquet", ListPolicy(carry=("created",)))
    assert json.loads(source.carried) == {"created": "1970-01-01 00:00:00.123456789"}


@pytest.mark.parametrize("start", ["9" * 400 + ":00:00", "9" * 5000, "1e999"])
def test_a_time_without_end_fails_its_row_alone(folder, start):
    (folder / "list.csv").write_text(f"path,start\na.mp4,{start}\nb.mp4,1\n")
    bad, good = read(folder / "list.csv")
    assert bad.failure and bad.failure[0] == "bad_range" and good.start_s == 1


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_a_line_without_end_takes_no_memory(folder, suffix):
    with (folder / f"list.{suffix}").open("wb") as file:
        file.write(b" " * (17 << 20))
    with pytest.raises(ValueError, match=f"list.{suffix} has a line of over 16777216 characters"):
        read(folder / f"list.{suffix}")
    with (folder / f"list.{suffix}").open("wb") as file:
        file.truncate(64 << 30)
    with pytest.raises(ValueError, match="holds a NUL byte"):
        read(folder / f"list.{suffix}")


def test_what_a_clip_cannot_hold_is_carried_as_text(folder):
    """Nested deeper than the JSON of a clip may be, so that one row does not make a shard unreadable."""
    rows = [{"path": "a.mp4", "x": json.loads("[" * levels + "]" * levels)} for levels in (10, 80)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shallow, deep = read(folder / "list.jsonl", ListPolicy(carry=("x",)))
    assert json.loads(shallow.carried) == {"x": rows[0]["x"]}
    assert json.loads(deep.carried) == {"x": "[" * 80 + "]" * 80}
    for source in (shallow, deep):
        data = clip_files(b"", "mp4", replace(CLIP, carried=json.loads(source.carried)))["json"]
        assert parse_clip_info(data, "x").carried == json.loads(source.carried)


def test_repeated_rows_are_counted(folder, capsys):
    (folder / "list.txt").write_text("a.mp4\nb.mp4\na.mp4\n")
    assert len(list(list_sources([str(folder / "list.txt")], ListPolicy()))) == 2
    assert "skipped 1 repeated inputs" in capsys.readouterr().err


def test_a_broken_line_of_jsonl_is_named(folder):
    (folder / "list.jsonl").write_text('{"path": "a.mp4"}\n\n{"path": \n')
    with pytest.raises(UsageError, match=r"line 3 is not a JSON object \(Expecting value at column 9\)"):
        read(folder / "list.jsonl")
