"""Writes happen whole or not at all, and the first of many writers wins."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from ipaddress import ip_address
from pathlib import Path
from threading import Barrier
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidvq.errors import UsageError
from vidvq.storage import (
    attempt_file,
    canonical_json,
    create_once,
    differences,
    exclusive_lock,
    files,
    is_chained,
    publish_once,
    read_json,
    read_range,
    remove_attempts,
    resolve_path,
    sync_folder,
    write_atomic,
    write_shared,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


_HOLD = """
import sys, time
from pathlib import Path
from vidvq.storage import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "wait"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_is_held_by_one_process_and_free_when_it_is_killed(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"is in use by process {owner.pid} on .*; give another"):
            with exclusive_lock(tmp_path, "give another"):
                raise AssertionError("two hold it")
    finally:
        owner.kill()
        owner.wait()
    with exclusive_lock(tmp_path, "give another"):
        assert f'"pid": {os.getpid()}' in (tmp_path / "lock.json").read_text()
    # Whatever the file says of a dead owner.
    (tmp_path / "lock.json").write_text("[" * 9)
    with exclusive_lock(tmp_path, "give another"):
        pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    write_atomic(tmp_path / "a" / "x", b"one")
    write_atomic(tmp_path / "a" / "x", b"two")
    assert (tmp_path / "a" / "x").read_bytes() == b"two"
    assert names(tmp_path / "a") == ["x"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.EIO, "disk")])
def test_an_attempt_that_fails_leaves_nothing_and_keeps_the_old_file(tmp_path, error):
    write_atomic(tmp_path / "x", b"old")
    with pytest.raises(type(error)):
        with attempt_file(tmp_path / "x") as (file, attempt):
            file.write(b"half of the n")
            file.flush()
            assert attempt.exists()
            raise error
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_file_that_was_meant(tmp_path, number):
    with pytest.raises(OSError, match="x") as error:
        with attempt_file(tmp_path / "x"):
            raise OSError(number, os.strerror(number))
    assert error.value.errno == number
    assert error.value.filename == str(tmp_path / "x")


def test_create_once_keeps_the_first(tmp_path):
    assert create_once(tmp_path / "x", b"first")
    assert not create_once(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first"
    assert names(tmp_path) == ["x"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not name open files")
@pytest.mark.parametrize("write", [write_atomic, create_once])
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_it_counts(tmp_path, monkeypatch, write):
    path, flushed = tmp_path / "x", []

    def flush(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink(), path.exists(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", flush)
    write(path, b"content")
    (attempt, named, size), (folder, counts, _) = flushed
    assert attempt.name.startswith("x.tmp.") and not named and size == 7
    assert folder == tmp_path and counts


def test_of_many_threads_one_creates_and_its_content_is_whole(tmp_path):
    for turn in range(20):
        path, barrier = tmp_path / str(turn) / "x", Barrier(8)

        def attempt(writer: int, path: Path = path, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            return create_once(path, bytes([writer]) * 10_000)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(attempt, range(8)))
        assert won.count(True) == 1
        assert path.read_bytes() == bytes([won.index(True)]) * 10_000
        assert names(path.parent) == ["x"]


def test_of_many_processes_one_creates_and_its_content_is_whole(tmp_path):
    script = """
import os, sys, time
from pathlib import Path
from vidvq.storage import create_once
folder, start = Path(sys.argv[1]), time.monotonic() + 0.2
children = []
for writer in range(6):
    child = os.fork()
    if not child:
        while time.monotonic() < start:
            pass
        os._exit(sum(create_once(folder / str(turn), bytes([65 + writer]) * 5000) for turn in range(20)))
    children.append(child)
print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "20"
    assert names(tmp_path) == sorted(str(turn) for turn in range(20))
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert data == data[:1] * 5000


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_hard_links_the_first_still_wins(tmp_path, monkeypatch, number):
    def no_links(*_):
        raise OSError(number, "not here")

    monkeypatch.setattr("os.link", no_links)
    assert create_once(tmp_path / "x", b"first")
    assert not create_once(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first"
    assert names(tmp_path) == ["x"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the system has no folder that cannot be flushed")
def test_where_folders_cannot_be_flushed_a_file_is_published():
    sync_folder(Path("/proc"))


@pytest.mark.parametrize("call", ["link", "fsync"])
def test_a_disk_that_fails_is_not_taken_for_one_that_lacks_a_function(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.EIO, "broken")

    (tmp_path / "mine").write_bytes(b"x")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="broken"):
        publish_once(tmp_path / "mine", tmp_path / "x")
    assert (tmp_path / "x").exists() == (call == "fsync")


def test_a_lock_that_fails_is_not_taken_for_one_that_is_held(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.lockf", fail)
    with pytest.raises(OSError, match="broken"), exclusive_lock(tmp_path, "wait"):
        pass


def test_an_attempt_that_lost_is_kept_for_its_writer_to_judge(tmp_path):
    create_once(tmp_path / "x", b"first")
    (tmp_path / "mine").write_bytes(b"second")
    assert not publish_once(tmp_path / "mine", tmp_path / "x")
    assert (tmp_path / "mine").read_bytes() == b"second"


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count bytes that are read")
def test_a_range_is_read_without_the_rest_of_its_block(tmp_path):
    """A training run reads millions of small ranges."""

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 64)
    begun = bytes_read()
    found = [read_range(path, 256 + index, 3) for index in range(100)]
    # Other threads, and the count, may have read some.
    assert bytes_read() - begun < 10_000
    assert found == [bytes(range(index, index + 3)) for index in range(100)]


def test_a_range_beyond_what_one_system_call_reads_is_whole(tmp_path, monkeypatch):
    class Short(FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 100)) or b""

    (tmp_path / "x").write_bytes(bytes(range(256)) * 2)
    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Short(path, mode))
    assert read_range(tmp_path / "x", 5, 250) == bytes(range(5, 255))
    assert read_range(tmp_path / "x", 500, 250) == bytes(range(244, 256))


def test_remove_attempts_touches_only_attempts_of_that_name(tmp_path):
    for name in ("a.tar", "a.tar.tmp.h-1-2", "b.tar.tmp.h-1-2", "a.tar.tmpx"):
        (tmp_path / name).touch()
    for name in ("a.tar.tmp.h-3-4", "c.tmp.h-1-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    remove_attempts(tmp_path, "a.tar")
    assert names(tmp_path) == ["a.tar", "a.tar.tmpx", "b.tar.tmp.h-1-2", "c.tmp.h-1-2"]
    remove_attempts(tmp_path, of={"c"})
    assert names(tmp_path) == ["a.tar", "a.tar.tmpx", "b.tar.tmp.h-1-2"]


@settings(deadline=None)
@given(JSON)
def test_equal_values_have_one_spelling(value):
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"{} {}", b'{"a": NaN}', b'{"a": -1e999}', b'{"a": 1, "a": 2}']
)
def test_what_is_not_json_is_refused_by_name(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match="x.json is not JSON"):
        read_json(tmp_path / "x.json")


def test_a_file_that_is_too_large_for_json_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_bytes(b"[1, 2]")
    monkeypatch.setattr(files, "_MAX_JSON_BYTES", 5)
    with pytest.raises(UsageError, match="x.json has 6 bytes; JSON files of vidvq have at most 5"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}, ["a.b was 1, now 3"]),
        ({"a": 1}, {"b": 2}, ["a was 1, now absent", "b was absent, now 2"]),
        ({}, {"a": {"b": {"c": 1}}}, ["a.b.c was absent, now 1"]),
        ({"a": {"b": 1}}, {}, ["a.b was 1, now absent"]),
        ({"a": {}}, {}, ["a was {}, now absent"]),
        ({"a": {"b": 1}}, {"a": 2}, ['a was {"b":1}, now 2']),
        ({"a": "0" * 64}, {"a": "f" * 64}, [f"a was {'0' * 12}, now {'f' * 12}"]),
        ([1, 2], [1, 3], [" was [1,2], now [1,3]"]),
    ],
)
def test_differences_name_every_place(old, new, expected):
    assert list(differences("", old, new)) == expected


def test_a_file_whose_attempt_another_driver_swept_is_written_again(tmp_path, monkeypatch):
    replace, swept = Path.replace, []

    def sweep_first(self, target):
        if len(swept) < 2:
            swept.append(self)
            self.unlink()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", sweep_first)
    write_shared(tmp_path / "report.html", b"all of it")
    assert (tmp_path / "report.html").read_bytes() == b"all of it"
    assert len(swept) == 2


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://[::1]:8000/a.mp4", "::1"), ("https://me@[2001:db8::7]/a.mp4?sig=x", "2001:db8::7")],
)
def test_an_ipv6_address_is_no_chain_of_file_systems(url, host):
    found = urlsplit(str(resolve_path(url))).hostname
    assert found and ip_address(found) == ip_address(host) and not is_chained(url)
    for chained in (f"{url}::x", f"simplecache::{url}", "http://[::1/a"):
        assert is_chained(chained)
        with pytest.raises(UsageError, match="chains file systems"):
            resolve_path(chained)
