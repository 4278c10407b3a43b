"""Inputs become the sources of a plan: unique, in order, with the values of their lists."""

import io
import json
import math
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidvq.corpus.inputs import Fingerprint, list_sources
from vidvq.corpus.lists import ListPolicy, is_list
from vidvq.corpus.source import Source
from vidvq.corpus.tars import is_tar
from vidvq.errors import UsageError
from vidvq.storage import resolve_path
from vidvq.video import VideoError

ANY = ListPolicy()


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    for name in ("b.mp4", "a/z.MKV", "a/notes.md", "c.webm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def names(inputs: list, policy: ListPolicy = ANY) -> list[str]:
    return [Path(source.uri).name for source in list_sources([str(given) for given in inputs], policy)]


def test_a_file_named_as_a_video_in_a_tar_beside_it_is_a_failed_entry(tmp_path):
    (tmp_path / "x.tar#a.mp4").write_bytes(b"file")
    assert [source.failure for source in list_sources([str(tmp_path)], ANY)] == [None]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.mp4")
        info.size = 6
        tar.addfile(info, io.BytesIO(b"member"))
    member, file = sorted(list_sources([str(tmp_path)], ANY), key=lambda source: source.size, reverse=True)
    assert member.size == 6 and member.failure is None
    assert file.failure and f"has the name of a video in {tmp_path / 'x.tar'}; rename it" in str(file.failure)


def test_folders_are_searched_by_suffix_and_files_are_taken_by_any_name(videos):
    assert names([videos]) == ["z.MKV", "b.mp4", "c.webm"]
    assert names([videos / "a/notes.md"]) == ["notes.md"]


def test_sources_are_unique_and_in_input_order(videos):
    assert names([videos / "c.webm", videos, f"{videos}/*.mp4"]) == ["c.webm", "z.MKV", "b.mp4"]


def test_a_glob_is_recursive(videos):
    assert names([f"{videos}/**/*.[mM]*"]) == ["notes.md", "z.MKV", "b.mp4"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_lists_give_uris_ranges_and_carried_columns(videos, suffix):
    rows = [
        {"url": "b.mp4", "start_s": 0.5, "end_s": 2.0, "caption": 'a "quoted", one', "id": 7},
        {"url": "s3://bucket/x.mp4", "start_s": None, "end_s": None, "caption": "ünïcode", "id": 8},
        {"url": "gone.mp4", "start_s": 1.0, "end_s": None, "caption": None, "id": 9},
    ]
    path = videos / f"list.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        sign = "," if suffix == "csv" else "\t"
        cells = [["" if cell is None else str(cell).replace('"', '""') for cell in row.values()] for row in rows]
        lines = [sign.join(rows[0]), *(sign.join(f'"{cell}"' if cell else "" for cell in line) for line in cells)]
        path.write_text("\n".join(lines))
    first, second, third = list_sources([str(path)], ListPolicy(carry=("caption", "id")))
    assert first.uri == str(videos / "b.mp4") and first.size == 5 and first.version
    assert (first.start_s, first.end_s) == (0.5, 2.0)
    assert str(json.loads(first.carried)["id"]) == "7" and json.loads(first.carried)["caption"] == 'a "quoted", one'
    assert second == Source("s3://bucket/x.mp4", carried=second.carried)
    assert json.loads(second.carried)["caption"] == "ünïcode"
    assert (third.size, third.version, third.start_s) == (-1, "", 1.0), "a missing file is an item, not an error"


def test_a_text_list_has_one_uri_per_line(videos):
    (videos / "list.txt").write_text("b.mp4\n\n  a/z.MKV  \n")
    assert names([videos / "list.txt"]) == ["b.mp4", "z.MKV"]


def test_a_range_is_checked_before_the_video_is_opened():
    assert Source("/v.mp4").time_range() == (0, math.inf)
    assert Source("/v.mp4", start_s=1.5, end_s=2).time_range() == (1.5, 2)
    for start_s, end_s in ((2.0, 1.0), (1.0, 1.0), (-1.0, None)):
        with pytest.raises(VideoError, match=f"bad_range: has start {start_s} and end {end_s}; needs 0 <= start < end"):
            Source("/v.mp4", start_s=start_s, end_s=end_s).time_range()


def test_two_ranges_of_one_video_are_two_sources(videos):
    (videos / "list.csv").write_text("uri,start_s,end_s\nb.mp4,0,1\nb.mp4,1,2\nb.mp4,0,1\n")
    assert [source.start_s for source in list_sources([str(videos / "list.csv")], ANY)] == [0.0, 1.0]


@pytest.mark.parametrize("time", ["abc", "inf", "-3", "1:99"])
def test_an_invalid_time_fails_its_item(videos, time):
    (videos / "list.csv").write_text(f"uri,start_s\nb.mp4,{time}\n")
    (source,) = list_sources([str(videos / "list.csv")], ANY)
    assert source.start_s is not None and source.start_s < 0


@pytest.mark.parametrize(
    ("policy", "text", "said"),
    [
        (ListPolicy(uri="vid"), "uri,caption\nb.mp4,x\n", "has no column 'vid' (lists.uri); it has uri, caption"),
        (ListPolicy(carry=("text",)), "uri,caption\nb.mp4,x\n", "has no column 'text' (lists.carry)"),
        (ListPolicy(start="t0"), "uri,caption\nb.mp4,x\n", "has no column 't0' (lists.start)"),
        (ANY, "name,caption\nb.mp4,x\n", "name one of name, caption by lists.uri"),
        (ANY, 'uri\n"b.mp4\n', "cannot be read"),
    ],
)
def test_a_list_without_the_configured_columns_is_a_usage_error(videos, policy, text, said):
    (videos / "list.csv").write_text(text)
    with pytest.raises(ValueError) as error:
        list(list_sources([str(videos / "list.csv")], policy))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [("l.jsonl", b"[1]\n"), ("l.jsonl", b"{\n"), ("l.parquet", b"PAR1"), ("l.txt", "ä.mp4".encode("utf-16"))],
)
def test_a_damaged_list_is_a_usage_error_with_its_name(videos, name, data):
    (videos / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
        list(list_sources([str(videos / name)], ANY))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{0}/none.mp4", "does not exist"),
        ("{0}/*.avi", "does not exist|no file matches"),
        ("{0}/empty", "no video under"),
        ("zip::s3://bucket/x", "chains file systems"),
        ("s3://", "has no bucket"),
        ("nosuch://bucket/x", "does not know"),
    ],
)
def test_a_missing_input_is_one_clear_error(videos, given, said):
    (videos / "empty").mkdir()
    with pytest.raises(ValueError, match=said):
        list(list_sources([given.format(videos)], ANY))


def test_a_tar_gives_the_offsets_of_its_videos(videos):
    path = videos / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("k1.json", b'{"caption": "one", "secret": 1}'),
            ("k1.mp4", b"first"),
            ("k1.txt", b"text of one"),
            ("k2.mp4", b"second"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    one, two = list_sources([str(path)], ListPolicy(carry=("caption", "txt")))
    assert one.uri == f"{path}#k1.mp4" and json.loads(one.carried) == {"caption": "one", "txt": "text of one"}
    assert two.carried == ""
    data = path.read_bytes()
    assert [data[source.offset : source.offset + source.size] for source in (one, two)] == [b"first", b"second"]


def test_the_fingerprint_depends_on_the_set_but_not_its_order():
    sources = [Source(f"/v/{number}.mp4", number, str(number)) for number in range(5)]
    forth, back = Fingerprint(), Fingerprint()
    for source in sources:
        forth.add(source)
    for source in reversed(sources):
        back.add(source)
    assert forth.value() == back.value()
    more = Fingerprint(forth.value())
    more.add(replace(sources[0], size=9))
    assert more.value()["sum"] != forth.value()["sum"]
    more.add(replace(sources[0], size=9), -1)
    assert more.value() == forth.value()
    for field, value in {"uri": "/w", "size": 9, "version": "x", "start_s": 1.0, "carried": "{}", "offset": 3}.items():
        other = Fingerprint()
        other.add(replace(sources[0], **{field: value}))
        alone = Fingerprint()
        alone.add(sources[0])
        assert other.value()["sum"] != alone.value()["sum"], field


def test_a_source_of_unknown_size_counts_no_bytes():
    fingerprint = Fingerprint()
    for size in (-1, 9):
        fingerprint.add(Source(f"/{size}", size))
    assert (fingerprint.value()["count"], fingerprint.value()["bytes"]) == (2, 9)


def test_a_name_that_is_not_utf8_is_one_failed_entry(videos):
    Path(os.fsdecode(os.fsencode(videos) + b"/na\xefve.mp4")).write_bytes(b"x")
    sources = list(list_sources([str(videos)], ANY))
    assert [source.uri for source in sources if source.failure] == [str(videos / r"na\xefve.mp4")]
    assert len(sources) == 4


def test_a_locale_of_another_encoding_is_blamed_on_no_name(videos, monkeypatch):
    Path(os.fsdecode(os.fsencode(videos) + b"/na\xefve.mp4")).write_bytes(b"x")
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(
        UsageError, match=r"na\\xefve.mp4 cannot be read in ascii, the encoding of this locale; set LC_ALL"
    ):
        list(list_sources([str(videos)], ANY))


def test_a_folder_that_cannot_be_listed_is_one_failed_entry(videos, monkeypatch):
    real = Path.iterdir

    def refuse(self):
        if self.name == "a":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    bad, *good = list_sources([str(videos)], ANY)
    assert bad.uri == str(videos / "a") and bad.failure == ("unreadable", "cannot be listed: Permission denied")
    assert [Path(source.uri).name for source in good] == ["b.mp4", "c.webm"]


def test_folders_may_be_nested_deeper_than_calls(tmp_path):
    (tmp_path / "b.mp4").touch()
    folder = tmp_path
    for _ in range(1100):
        folder /= "d"
        folder.mkdir()
    (folder / "a.mp4").touch()
    try:
        assert names([tmp_path]) == ["b.mp4", "a.mp4"]
    finally:
        # The cleanup of pytest calls itself for each folder.
        (folder / "a.mp4").unlink()
        while folder != tmp_path:
            folder.rmdir()
            folder = folder.parent


def test_skipped_files_of_a_folder_are_counted(videos, capsys):
    for name in ("._b.mp4", "sub.srt", "other.srt", "README", "out/plan.json", "out/plan.parquet", "out/clips-0.tar",
                 "decoded/decode.json", "decoded/a.mp4"):  # fmt: skip
        (videos / name).parent.mkdir(exist_ok=True)
        (videos / name).write_bytes(b"")
    (videos / "linked").symlink_to(videos / "a", target_is_directory=True)
    assert names([videos]) == ["z.MKV", "b.mp4", "c.webm"]
    told = capsys.readouterr().err.replace("\n", " ")
    for part in ("2 .srt", "1 .md", "1 macOS ._ files", "1 without a suffix", "1 linked folders", "2 output folders"):
        assert part in told, part


def test_two_links_to_a_file_are_two_sources(videos):
    (videos / "d.mp4").hardlink_to(videos / "b.mp4")
    (videos / "e.mp4").symlink_to(videos / "b.mp4")
    assert names([videos]) == ["z.MKV", "b.mp4", "c.webm", "d.mp4", "e.mp4"]


def test_a_query_does_not_hide_a_suffix():
    for url, list_, tar in (
        ("https://host/x.csv?token=a/b.mp4", True, False),
        ("https://host/x.tar?token=1", False, True),
        ("https://host/x.mp4?list=x.csv", False, False),
    ):
        assert (is_list(resolve_path(url)), is_tar(resolve_path(url))) == (list_, tar), url
    source = Source("https://host/x.tar?token=1#a.mp4", 1, "", 512)
    assert (source.container, source.member) == ("https://host/x.tar?token=1", "a.mp4")


def test_the_folder_above_a_link_is_the_one_that_the_system_opens(tmp_path):
    (tmp_path / "far/lists").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/lists")
    for folder in (tmp_path, tmp_path / "far"):
        (folder / "a.mp4").write_bytes(str(folder).encode())
    (tmp_path / "far/lists/list.txt").write_text("../a.mp4\n")
    (tmp_path / "far/lists/list.jsonl").write_text(json.dumps({"uri": "../a\0.mp4"}))
    wanted = [str(tmp_path / "far/a.mp4")]
    for given in ("link/list.txt", "link/../a.mp4", "far/lists/list.txt", "far/lists/../a.mp4"):
        assert [source.uri for source in list_sources([f"{tmp_path}/{given}"], ListPolicy())] == wanted
    (bad,) = list_sources([f"{tmp_path}/link/list.jsonl"], ListPolicy())
    assert bad.failure and bad.failure[0] == "bad_name"
