"""Temporary files of dead processes are deleted; those of live ones are not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vidvq.storage import sweep, temporary_copy, temporary_prefix
from vidvq.storage.files import attempt_file
from vidvq.storage.temporary import owner

MAKE = """
import os, sys, tempfile
from vidvq.storage import temporary_copy, temporary_prefix
copy = temporary_copy()
print(copy.__enter__().name, flush=True)
print(tempfile.mkdtemp(prefix=temporary_prefix("dry-run")), flush=True)
sys.stdin.read(1)
os._exit(9)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_dead_process_left_is_deleted_and_what_a_live_one_has_is_kept(folder):
    process = subprocess.Popen([sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    copy, scratch = Path(process.stdout.readline().strip()), Path(process.stdout.readline().strip())
    (scratch / "inner").mkdir()
    sweep()
    assert copy.exists() and scratch.exists()
    process.stdin.write("x")
    process.stdin.close()
    process.wait()
    assert copy.exists() and scratch.exists()
    with temporary_copy() as mine:
        sweep()
        assert Path(mine.name).exists()
    assert list(folder.iterdir()) == []


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_files_of_other_machines_and_of_others_are_kept(folder):
    dead = dead_process()
    kept = [
        f"vidvq-copy.tmp.another-host-{dead}-0123abcd",
        f"copy.tmp.{owner().rpartition('-')[0]}-{dead}-0123abcd",
        f"vidvq-copy.tmp.{owner()}-0123abcd",
        "vidvq-error-x.log",
        "vidvq-copy.tmp.x",
    ]
    for name in kept:
        (folder / name).touch()
    gone = folder / f"vidvq-clips-000000.tar.tmp.{owner().rpartition('-')[0]}-{dead}-0123abcd"
    gone.touch()
    sweep()
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


def test_a_file_that_a_process_of_another_container_holds_is_kept(folder):
    # Its process cannot be seen from here, its lock can.
    with temporary_copy() as copy:
        other = folder / f"vidvq-copy.tmp.{owner().rpartition('-')[0]}-{dead_process()}-0123abcd"
        os.link(copy.name, other)
        sweep()
        assert other.exists()
    sweep()
    assert not other.exists()


def test_a_link_is_not_followed(folder):
    target = folder / "precious"
    target.mkdir()
    (folder / f"{temporary_prefix('copy').replace(str(os.getpid()), str(dead_process()))}0123abcd").symlink_to(target)
    sweep()
    assert target.exists()


def test_an_attempt_for_an_object_store_can_be_swept(folder):
    from vidvq.storage import resolve_path

    with attempt_file(resolve_path("s3://bucket/clips-000000.tar")) as (_, attempt):
        assert attempt.name.startswith("vidvq-clips-000000.tar.tmp.") and attempt.parent == folder


def test_a_dead_process_that_nobody_has_waited_for_owns_nothing(folder):
    process = subprocess.Popen([sys.executable, "-c", ""])
    copy = folder / f"vidvq-copy.tmp.{owner().rpartition('-')[0]}-{process.pid}-abcdefgh"
    copy.touch()
    # Waits for its end and leaves it as it is.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    sweep()
    assert not copy.exists()
    process.wait()
