"""Tars of videos: a bad member or a bad tar is one failed entry."""

import errno
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from vidvq.corpus import tars
from vidvq.corpus.fetch import local_file
from vidvq.corpus.inputs import SUFFIXES, list_sources
from vidvq.corpus.lists import ListPolicy
from vidvq.corpus.source import Source
from vidvq.corpus.tars import read_tar
from vidvq.video.limits import Limits

CARRY = ("caption",)
ONE = ("0001.mp4", b"first")


def pack(path: Path, *members: tuple[str, bytes], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path: Path, passed: Counter[str] | None = None) -> list[Source]:
    return list(read_tar(path, CARRY, SUFFIXES, Counter() if passed is None else passed))


def content(source: Source) -> bytes:
    with local_file(source, Limits()) as path:
        return path.read_bytes()


def test_a_leading_dot_folder_is_removed_from_names(tmp_path):
    caption = b'{"caption": "one"}'
    path = pack(tmp_path / "x.tar", ("./0001.json", caption), ("./0001.mp4", b"first"), ("./sub/0001.mp4", b"second"))
    first, second = read(path)
    assert (first.uri, second.uri) == (f"{path}#0001.mp4", f"{path}#sub/0001.mp4")
    assert json.loads(first.carried) == {"caption": "one"} and second.carried == ""
    assert [content(source) for source in (first, second)] == [b"first", b"second"]


def test_a_folder_with_a_dot_keeps_carried_values(tmp_path):
    members = [(f"v1.{part}/0001.{kind}", data) for part in "01" for kind, data in (("json", b"{}"), ("mp4", b"x"))]
    members[0] = (members[0][0], b'{"caption": "of v1.0"}')
    first, second = read(pack(tmp_path / "x.tar", *members))
    assert json.loads(first.carried) == {"caption": "of v1.0"} and second.carried == ""


@pytest.mark.parametrize(
    ("name", "shown", "said"),
    [
        ("t" * 120 + ".mp4", "t" * 120 + ".mp4", "124 bytes; at most 100"),
        ("back\\slash.mp4", "back\\slash.mp4", "a backslash"),
        ("na\udcefve.mp4", r"na\xefve.mp4", "not UTF-8"),
        ("../up.mp4", "../up.mp4", "leaves the tar"),
    ],
)
def test_a_member_with_a_bad_name_is_one_failed_entry(tmp_path, name, shown, said):
    path = pack(tmp_path / "x.tar", (name, b"data"), ONE, format=tarfile.GNU_FORMAT)
    bad, good = read(path)
    assert bad.uri == f"{path}#{shown}" and bad.failure[0] == "bad_name" and said in bad.failure[1]
    assert content(good) == b"first"


def test_a_name_with_dots_keeps_what_is_carried(tmp_path):
    def about(caption: str) -> bytes:
        return json.dumps({"caption": caption}).encode()

    members = [
        ("Track 2.0 (clean).mp4", b"first"),
        ("Track 2.0 (clean).json", about("clean")),
        ("Track 2.1.mp4", b"second"),
        ("Track 2.1.json", b"{"),
        ("0001.mp4", b"third"),
        ("0001.low.mp4", b"fourth"),
        ("0001.low.json", about("low")),
        ("0001.json", about("both")),
        ("0001.meta.json", b"{"),
        ("0002.low.mp4", b"fifth"),
        ("0002.json", b"{"),
    ]
    first, second, third, fourth, fifth = read(pack(tmp_path / "x.tar", *members))
    assert [json.loads(source.carried)["caption"] for source in (first, third, fourth)] == ["clean", "both", "low"]
    assert [source.failure and source.failure[0] for source in (second, fifth)] == ["bad_sidecar"] * 2


def test_names_with_a_number_sign_are_read(tmp_path):
    (source,) = read(pack(tmp_path / "x.tar", ("a#1.mp4", b"first")))
    assert content(source) == b"first"


def test_links_are_failed_entries(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "0001.mp4"
        tar.addfile(link)
    (source,) = read(tmp_path / "x.tar")
    assert source.failure == ("not_a_file", "is a link to 0001.mp4 in its tar; pack the file itself")


def _damage(data: bytes, kind: str) -> bytes:
    second = data.index(b"0002.mp4")
    return {
        "cut in a member": data[: second + 700],
        "cut in a header": data[: second + 100],
        "damaged header": data[:second] + b"\xff" * 512 + data[second + 512 :],
    }[kind]


@pytest.mark.parametrize("kind", ["cut in a member", "cut in a header", "damaged header"])
def test_a_truncated_tar_gives_the_members_before_the_damage_and_one_failed_entry(tmp_path, kind):
    path = pack(tmp_path / "x.tar", ONE, ("0002.mp4", b"2" * 1000), ("0003.mp4", b"third"))
    path.write_bytes(_damage(path.read_bytes(), kind))
    sources = read(path)
    assert content(sources[0]) == b"first"
    assert sources[-1].uri == str(path) and sources[-1].failure[0] == "torn_tar"
    assert [source.failure is None for source in sources[1:-1]] == [True] * (kind == "cut in a member")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tars_that_were_joined_lose_no_video_without_a_word(tmp_path, suffix):
    mode = "w:gz" if suffix == ".tar.gz" else "w"
    parts = [pack(tmp_path / f"{name}{suffix}", (f"{name}.mp4", b"video"), mode=mode) for name in "ab"]
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    first, rest = read(joined)
    assert content(first) == b"video"
    assert rest.failure and rest.failure[0] == "torn_tar" and "tars were joined" in rest.failure[1]
    # Zeros are part of the end.
    parts[0].write_bytes(parts[0].read_bytes() + bytes(100_000))
    assert len(read(parts[0])) == 1


def test_a_named_pipe_is_one_failed_entry_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    pack(tmp_path / "y.tar", ONE)
    pipe, video = list_sources([str(tmp_path)], ListPolicy())
    assert pipe.failure == ("unreadable", "is no regular file") and content(video) == b"first"


def test_a_link_to_nothing_is_one_failed_entry(tmp_path):
    (tmp_path / "x.tar").symlink_to(tmp_path / "gone.tar")
    pack(tmp_path / "y.tar", ONE)
    link, video = list_sources([str(tmp_path)], ListPolicy())
    assert link.failure == ("unreadable", "cannot be read: No such file or directory") and content(video) == b"first"


def test_a_read_error_costs_the_rest_of_a_tar_and_a_lack_of_descriptors_stops_the_job(tmp_path, monkeypatch):
    path = pack(tmp_path / "x.tar", ONE, ("0002.mp4", b"second"))
    real = tars.read_headers
    number = errno.EIO

    def read_headers(file):
        yield next(real(file))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tars, "read_headers", read_headers)
    first, rest = read(path)
    assert content(first) == b"first" and rest.failure == ("unreadable", "cannot be read: Input/output error")
    number = errno.EMFILE
    with pytest.raises(OSError, match="Too many open files"):
        read(path)


def test_a_name_that_occurs_twice_is_one_failed_entry(tmp_path):
    path = pack(tmp_path / "x.tar", ONE, ("0001.mp4", b"second"), ("0002.mp4", b"third"))
    first, second, third = list_sources([str(path)], ListPolicy())
    assert content(first) == b"first" and content(third) == b"third"
    assert second.failure and second.failure[0] == "bad_name" and "an earlier member" in second.failure[1]


def test_a_tar_that_ends_between_two_members_is_torn(tmp_path):
    path = pack(tmp_path / "x.tar", ONE, ("0002.mp4", b"second"))
    path.write_bytes(path.read_bytes()[:1024])
    first, rest = read(path)
    assert content(first) == b"first" and rest.failure and rest.failure[0] == "torn_tar"


@pytest.mark.parametrize(
    "damage",
    [
        b"././@LongLink".ljust(124, b"\0") + b"\x80" + bytes(6) + b"\xff" * 5 + bytes(20) + b"L",
        b"0002.mp4".ljust(124, b"\0") + b"\xff" * 11 + b"\0" + bytes(20) + b"0",
    ],
)
def test_a_hostile_header_is_one_failed_entry(tmp_path, damage):
    """A long name of terabytes, and a size below 0."""
    path = pack(tmp_path / "x.tar", ONE)
    header = bytearray(damage.ljust(512, b"\0"))
    header[257:265] = b"ustar  \0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(path.read_bytes()[:1024] + header + bytes(1024))
    first, rest = read(path)
    assert content(first) == b"first" and rest.failure and rest.failure[0] == "torn_tar"


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b" + b"\0" * 1000])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_file_that_is_not_a_tar_is_one_failed_entry(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (source,) = read(tmp_path / name)
    assert source.failure[0] == "torn_tar"


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".TAR.GZ"])
def test_a_compressed_tar_is_read(tmp_path, suffix):
    path = pack(tmp_path / f"x{suffix}", ONE, ("0002.mp4", b"second"), mode="w:gz")
    for given in (path, tmp_path):
        sources = list(list_sources([str(given)], ListPolicy()))
        assert [content(source) for source in sources] == [b"first", b"second"]


def test_a_truncated_compressed_tar_is_one_failed_entry(tmp_path):
    path = pack(tmp_path / "x.tar.gz", ONE, ("0002.mp4", b"second" * 1000), mode="w:gz")
    path.write_bytes(path.read_bytes()[:-40])
    assert [source.failure[0] for source in read(path) if source.failure] == ["torn_tar"]


def test_a_gzipped_tar_named_as_a_plain_one_is_one_failed_entry(tmp_path):
    (source,) = read(pack(tmp_path / "x.tar", ONE, mode="w:gz"))
    assert source.failure[0] == "torn_tar"


def test_files_of_macos_are_skipped_and_counted(tmp_path):
    passed: Counter[str] = Counter()
    (source,) = read(pack(tmp_path / "x.tar", ("._0001.mp4", b"\0\5\26\7"), ("d/._0001.mp4", b"\0"), ONE), passed)
    assert content(source) == b"first" and passed == {"macOS ._ files": 2}


@pytest.mark.parametrize("data", [b"{", b"\xff", b'{"caption": 1e999, "x": '])
def test_a_damaged_sidecar_fails_its_video(tmp_path, data):
    bad, good = read(pack(tmp_path / "x.tar", ("0000.json", data), ("0000.mp4", b"data"), ONE))
    assert bad.failure[0] == "bad_sidecar" and "0000.json" in bad.failure[1]
    assert content(good) == b"first"


def test_values_without_a_json_type_are_carried_as_text(tmp_path):
    (source,) = read(pack(tmp_path / "x.tar", ("0001.json", b'{"caption": [NaN, "\\ud800"]}'), ONE))
    assert json.loads(source.carried) == {"caption": r"[nan, '\ud800']"}
