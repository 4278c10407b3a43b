"""Samples of a shard that are found by its headers alone: nothing in them is taken on trust."""

import tarfile

import pytest

from vidvq.errors import UsageError
from vidvq.formats.token_index import index_shard


def member(name: str, size: int = 3, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type = size, kind
    return found


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([member("a.json"), member("a.json")], "'a.json' occurs twice"),
        ([member("a.json", 0, tarfile.SYMTYPE)], "a.json is not a plain file"),
        ([member("../a.json")], r"\.\./a\.json"),
        ([member("a.json", 1 << 20)], "a.json is not a plain file, or the file ends within it"),
    ],
)
def test_a_member_that_no_shard_has_is_refused(tmp_path, members, said):
    path = tmp_path / "tokens-000000.tar"
    blocks = [each.tobuf(tarfile.USTAR_FORMAT) + b"abc".ljust(512, b"\0") * bool(each.size) for each in members]
    path.write_bytes(b"".join(blocks) + bytes(1024))
    with pytest.raises(UsageError, match=said):
        index_shard(path)
