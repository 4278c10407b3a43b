"""Tars: a deterministic writer, and a reader that refuses hostile files."""

import hashlib
import io
import resource
import tarfile
from pathlib import Path

import pytest
from webdataset.compat import WebDataset

from vidvq.errors import UsageError
from vidvq.formats.tar import Member, TarWriter, check_member, find_damage, read_members, read_samples
from vidvq.formats.token_index import index_shard

FILES = {"a.json": b"{}", "a.mp4": b"\x00\x01" * 700, "b.json": b'{"x":1}', "b.mp4": b""}


def write(path: Path, files: dict[str, bytes] = FILES) -> list[Member]:
    with path.open("wb") as file:
        tar = TarWriter(file)
        for name, data in files.items():
            tar.add(name, data)
        tar.close()
    return tar.members


def write_foreign(path: Path, *infos: tarfile.TarInfo) -> Path:
    """A tar by another, careless writer."""
    with tarfile.open(path, "w") as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def info(name: str, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def test_a_second_write_gives_the_same_bytes(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_a_tar_is_what_tarfile_writes(count):
    sizes = [0, 1, 511, 512, 513, 8191, 10240]
    files = {f"{'k' * (index % 90)}ü{index}.npy": b"\xff" * sizes[index % len(sizes)] for index in range(count)}
    ours, theirs = io.BytesIO(), io.BytesIO()
    tar = TarWriter(ours)
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as reference:
        for name, data in files.items():
            tar.add(name, data)
            reference.addfile(info(name, size=len(data)), io.BytesIO(data))
    tar.close()
    assert ours.getvalue() == theirs.getvalue()
    assert tar.sha256 == hashlib.sha256(theirs.getvalue()).hexdigest()


def test_a_member_that_a_header_cannot_describe_is_refused():
    class Large(bytes):
        def __len__(self) -> int:
            return 8**11

    with pytest.raises(UsageError, match="has 8589934592 bytes; at most 8589934591 are allowed"):
        TarWriter(io.BytesIO()).add("a.npy", Large())


def test_nothing_of_the_machine_is_in_it(tmp_path):
    write(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        for member in tar:
            owner = (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode)
            assert owner == (0, 0, 0, "", "", 0o644)


def test_what_goes_in_comes_out(tmp_path):
    write(tmp_path / "x.tar")
    assert dict(read_members(tmp_path / "x.tar")) == FILES
    assert list(read_samples(tmp_path / "x.tar")) == [
        ("a", {"json": FILES["a.json"], "mp4": FILES["a.mp4"]}),
        ("b", {"json": FILES["b.json"], "mp4": FILES["b.mp4"]}),
    ]


def test_the_standard_library_reads_it(tmp_path):
    write(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        found = {}
        for name in tar.getnames():
            file = tar.extractfile(name)
            assert file
            found[name] = file.read()
    assert found == FILES


def test_webdataset_reads_it(tmp_path):
    write(tmp_path / "x.tar")
    samples = list(WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["a", "b"]
    assert samples[0]["mp4"] == FILES["a.mp4"]


@pytest.mark.parametrize(
    "name", ["", "a/b", "../a", "..", ".hidden", "/etc/passwd", "a\\b", "a\0b", "a\nb", "-rf", "a\x7f", "a" * 101]
)
def test_an_unsafe_name_is_refused(name):
    for use in (check_member, lambda name: TarWriter(io.BytesIO()).add(name, b"")):
        with pytest.raises(ValueError, match="tar member"):
            use(name)


def test_a_name_is_written_once(tmp_path):
    with pytest.raises(ValueError, match="'a.json' is already in the tar"):
        with (tmp_path / "x.tar").open("wb") as file:
            tar = TarWriter(file)
            tar.add("a.json", b"")
            tar.add("a.json", b"")


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ([info("a.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "not a regular file"),
        ([info("a.mp4", type=tarfile.LNKTYPE, linkname="b.mp4")], "not a regular file"),
        ([info("a", type=tarfile.DIRTYPE)], "not a regular file"),
        ([info("a", type=tarfile.FIFOTYPE)], "not a regular file"),
        ([info("a", type=tarfile.CHRTYPE)], "not a regular file"),
        ([info("../a.mp4", size=3)], "slash"),
        ([info("/a.mp4", size=3)], "slash"),
        ([info("d/a.mp4", size=3)], "slash"),
        ([info("..", size=3)], "start with a dot"),
        ([info("-rf", size=3)], "dash"),
        ([info("a.mp4", size=3), info("a.mp4", size=3)], "occurs twice"),
        ([info("a" * 200, size=3)], "1 to 100 bytes"),
    ],
)
def test_a_hostile_member_is_refused(tmp_path, members, rule):
    path = write_foreign(tmp_path / "x.tar", *members)
    with pytest.raises(ValueError, match=rule):
        list(read_members(path))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_foreign_tar_reads_as_by_the_standard_library(tmp_path, format):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=format) as tar:
        for name in ("a.json", "é.json", "b.mp4", "c" * 100):
            tar.addfile(info(name, size=700, mtime=1.5, uname="me", uid=1 << 20), io.BytesIO(bytes(range(70)) * 10))
    assert [*dict(read_members(path))] == ["a.json", "é.json", "b.mp4", "c" * 100]
    assert set(dict(read_members(path)).values()) == {bytes(range(70)) * 10}


@pytest.mark.parametrize(
    ("last", "rule"),
    [
        (info("z.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a regular file"),
        (info("a.json", size=3), "occurs twice"),
        (info("a.json", size=3, uname="é"), "occurs twice"),
        (info("../z", size=3), "slash"),
    ],
)
def test_plain_members_do_not_hide_what_comes_after(tmp_path, last, rule):
    path = tmp_path / "x.tar"
    write(path)
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(last, io.BytesIO(b"x" * last.size))
    with pytest.raises(ValueError, match=rule):
        list(read_members(path))


def test_a_header_whose_checksum_is_wrong_gives_nothing(tmp_path, flip_byte):
    write(tmp_path / "x.tar")
    flip_byte(tmp_path / "x.tar", 0)
    with pytest.raises(ValueError, match="is not a readable tar"):
        list(read_members(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (slice(345, 348), b"dir", "'dir/a.json' must not contain a slash"),
        (slice(0, 1), b"\xff", "must be UTF-8"),
        (slice(124, 136), b"-0000000003\0", "is not a readable tar"),
        (slice(124, 136), b"00000000008\0", "is not a readable tar"),
        (slice(156, 157), b"5", "is not a regular file"),
    ],
)
def test_a_header_that_is_not_quite_plain_is_read_as_what_it_is(tmp_path, field, value, said):
    header = bytearray(info("a.json", size=3).tobuf(tarfile.USTAR_FORMAT))
    header[field] = value
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    (tmp_path / "x.tar").write_bytes(header + b"abc".ljust(512, b"\0") + bytes(1024))
    with pytest.raises(UsageError, match=said):
        list(read_members(tmp_path / "x.tar"))


def test_a_nul_in_a_name_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    header = info("evil", size=3, pax_headers={"path": "a\0b"})
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(header, io.BytesIO(b"xyz"))
    with pytest.raises(ValueError, match="control character"):
        list(read_members(path))


def test_a_member_over_the_cap_is_refused_before_it_is_read(tmp_path):
    write(tmp_path / "x.tar")
    with pytest.raises(ValueError, match="'a.mp4' exceeds the limits"):
        list(read_members(tmp_path / "x.tar", max_member_bytes=1000))


@pytest.mark.parametrize("kept", [100, 512 + 512 + 600, 512 + 512 + 512 + 1000])
def test_a_torn_file_is_refused(tmp_path, kept):
    write(tmp_path / "x.tar")
    torn = tmp_path / "torn.tar"
    torn.write_bytes((tmp_path / "x.tar").read_bytes()[:kept])
    with pytest.raises(ValueError, match="torn.tar"):
        list(read_members(torn))


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with any size, in base 256 where octal digits do not hold it."""
    data = bytearray(info(name, type=kind).tobuf(tarfile.USTAR_FORMAT))
    data[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else (size % (1 << 95) + (1 << 95)).to_bytes(12, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def records(*texts: bytes) -> bytes:
    """A POSIX header of these records, each as ``KEY=VALUE`` or with its length."""
    body = b"".join(b"%d %s\n" % (len(text) + 4, text) if b" " not in text else text for text in texts)
    return header("PaxHeader", len(body), tarfile.XHDTYPE) + body + bytes(-len(body) % 512)


DAMAGED = {
    "a long name that claims an exabyte": header("@", 1 << 60, tarfile.GNUTYPE_LONGNAME),
    "a header for all members that claims a terabyte": header("@", 1 << 40, tarfile.XGLTYPE),
    "a negative size": header("b.mp4", -2048),
    "a size that no file has": header("b.mp4", 1 << 80),
    "a POSIX size below 0": records(b"size=-1024") + header("b.mp4"),
    "a POSIX size that no file has": records(b"size=9223372036854775807") + header("b.mp4"),
    "a record that claims more bytes than an address has": records(b"99999999999999999999999 a=b\n") + header("b.mp4"),
    "a record whose length is a book": records(b"9" * 5000 + b" a=b\n") + header("b.mp4"),
    "a record of no length": records(b"0 a=b\n") + header("b.mp4"),
    "a sparse map of words": records(b"GNU.sparse.map=a,b", b"GNU.sparse.size=1") + header("b.mp4"),
    "a sparse file without a map": records(b"GNU.sparse.major=1", b"GNU.sparse.minor=0") + header("b.mp4"),
    "a chain of long names": (header("@", 2, tarfile.GNUTYPE_LONGNAME) + b"q".ljust(512, b"\0")) * 1100,
}


@pytest.fixture(params=DAMAGED)
def damaged(request, tmp_path) -> Path:
    """A tar with a good member, and then headers with which tarfile itself does not end in an error of its own."""
    path = tmp_path / "x.tar"
    path.write_bytes(header("a.mp4", 3) + b"abc".ljust(512, b"\0") + DAMAGED[request.param] + bytes(1024))
    return path


def test_no_header_makes_the_readers_fail_or_allocate(damaged):
    for read in (lambda: list(read_members(damaged)), lambda: index_shard(damaged)):
        with pytest.raises(UsageError, match=r"x\.tar") as error:
            read()
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_a_sparse_member_is_no_regular_file(tmp_path):
    path = tmp_path / "x.tar"
    sparse = records(b"GNU.sparse.size=8000000000", b"GNU.sparse.map=0,1") + header("b.mp4", 1)
    path.write_bytes(sparse + b"b".ljust(512, b"\0") + bytes(1024))
    with pytest.raises(UsageError, match="'b.mp4' is not a regular file"):
        list(read_members(path))


def test_a_member_that_claims_more_than_the_file_has_is_not_allocated(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(header("a.mp4", 8_000_000_000) + bytes(1024))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, limits[1]))
    try:
        with pytest.raises(UsageError, match="ends inside member 'a.mp4'"):
            list(read_members(path))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("kept", [1024, 3072])
def test_a_shard_that_ends_between_two_members_is_torn(tmp_path, kept):
    write(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:kept])
    for read in (lambda: list(read_members(tmp_path / "x.tar")), lambda: index_shard(tmp_path / "x.tar")):
        with pytest.raises(UsageError, match=r"x\.tar is not a readable"):
            read()


def test_two_samples_of_one_key_are_not_taken_for_one(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes((header("k.json", 1) + b"1".ljust(512, b"\0")) * 2 + bytes(1024))
    for read in (lambda: list(read_members(path)), lambda: index_shard(path)):
        with pytest.raises(UsageError, match="member 'k.json' occurs twice"):
            read()


def test_a_damaged_header_is_not_the_end_of_a_shard(tmp_path, flip_byte):
    write(tmp_path / "x.tar")
    flip_byte(tmp_path / "x.tar", 3072)
    with pytest.raises(UsageError, match="no header at byte 3072"):
        index_shard(tmp_path / "x.tar")


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100, b"\x1f\x8b" + b"\0" * 600])
def test_what_is_no_tar_is_refused(tmp_path, data):
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.tar is not a readable tar"):
        list(read_members(path))


# a.json: header 0, content 512, padding to 1024; a.mp4: header 1024, content 1536 to 2936, padding to 3072;
# b.json: header 3072, content 3584, padding to 4096; b.mp4: header 4096; end 4608.
@pytest.mark.parametrize(
    ("offset", "found"),
    [
        (0, "a.json: its tar header was changed"),
        (511, "a.json: its tar header was changed"),
        (512, "a.json: its content was changed"),
        (514, "a.json: the padding after it was changed"),
        (1023, "a.json: the padding after it was changed"),
        (1024 + 130, "a.mp4: its tar header was changed"),
        (1536, "a.mp4: its content was changed"),
        (2935, "a.mp4: its content was changed"),
        (2936, "a.mp4: the padding after it was changed"),
        (3584, "b.json: its content was changed"),
        (4096 + 120, "b.mp4: its tar header was changed"),
        (4608, "the end of the archive was changed"),
        (10239, "the end of the archive was changed"),
    ],
)
def test_damage_is_named_by_member_and_kind(tmp_path, flip_byte, offset, found):
    members = write(tmp_path / "x.tar")
    assert find_damage(tmp_path / "x.tar", members) == []
    flip_byte(tmp_path / "x.tar", offset)
    assert find_damage(tmp_path / "x.tar", members) == [found]


def test_not_one_flipped_byte_goes_unseen(tmp_path):
    members = write(tmp_path / "x.tar")
    data = bytearray((tmp_path / "x.tar").read_bytes())
    for offset in range(0, len(data), 3):
        data[offset] ^= 0x10
        (tmp_path / "x.tar").write_bytes(data)
        assert len(find_damage(tmp_path / "x.tar", members)) == 1, offset
        data[offset] ^= 0x10


@pytest.mark.parametrize("kept", [0, 511, 1030, 2000, 4096])
def test_a_file_cut_short_names_the_first_member_lost(tmp_path, kept):
    members = write(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:kept])
    lost = next(name for name, end in zip(FILES, (514, 2936, 3591, 4608), strict=True) if kept < end)
    assert find_damage(tmp_path / "x.tar", members) == [f"{lost}: the file ends before it"]
