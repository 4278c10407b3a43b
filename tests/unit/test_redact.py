"""Credentials in URLs never reach a record, a report or a log."""

import json
import os
from functools import partial

import pyarrow as pa
import pytest

from vidvq import log
from vidvq.formats.commit import Outcome, commit_shard
from vidvq.formats.plan import create_plan, extend_plan
from vidvq.redact import printable, redact

SIGNED = "https://host/a.mp4?X-Amz-Credential=AKIA/x&X-Amz-Signature=abcdef&part=2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SIGNED, "https://host/a.mp4?X-Amz-Credential=***&X-Amz-Signature=***&part=2"),
        ("see s3://me:secret@host/x.mp4: torn", "see s3://***@host/x.mp4: torn"),
        (
            "https://h/x?sig=a%2Bb&sv=2024 and https://h/y?token=t",
            "https://h/x?sig=***&sv=2024 and https://h/y?token=***",
        ),
        ("s3://me:se@cret@host/x.mp4", "s3://***@host/x.mp4"),
        ("https://h?mail=me@x&x-goog-credential=c", "https://h?mail=me@x&x-goog-credential=***"),
        (
            "https://h/x?client_secret=s&X-Amz-Security-Token=t",
            "https://h/x?client_secret=***&X-Amz-Security-Token=***",
        ),
        ("https://h/x?api-key=s&apikey=s&monkey=1", "https://h/x?api-key=***&apikey=***&monkey=1"),
        ("https://h/x?access_token=t#frag", "https://h/x?access_token=***#frag"),
        ("https://h/keys/x.mp4?page=3", "https://h/keys/x.mp4?page=3"),
        ("/videos/a?key=b.mp4", "/videos/a?key=b.mp4"),
        ("mail@host is no URL", "mail@host is no URL"),
    ],
)
def test_what_a_url_gives_away_is_hidden(text, shown):
    assert redact(text) == shown


def test_records_and_log_lines_are_without_credentials(tmp_path, capsys):
    commit_shard(tmp_path, "clips-000000.tar", "plan", lambda draft: draft.failed.append(Outcome("a", "torn", SIGNED)))
    record = (tmp_path / "commits/clips-000000.tar.json").read_text()
    assert "abcdef" not in record and json.loads(record)["failed"][0]["detail"] == redact(SIGNED)
    log.info(SIGNED)
    log.warn(SIGNED)
    assert "abcdef" not in capsys.readouterr().err


def test_a_file_name_is_logged_as_it_is(capsys):
    log.info("/videos/:smile:[bold].mp4")
    assert capsys.readouterr().err == "/videos/:smile:[bold].mp4\n"


@pytest.mark.parametrize(("uri", "mode"), [(SIGNED, 0o600), ("https://host/a.mp4?part=2", 0o644), ("/a.mp4", 0o644)])
def test_a_plan_with_secrets_is_readable_by_its_owner_alone(uri, mode, tmp_path, request):
    request.addfinalizer(partial(os.umask, os.umask(0o022)))
    table = pa.table({"key": ["a"], "shard": pa.array([0], pa.int32()), "uri": [uri]})
    plan = create_plan(tmp_path, "shard", "clips", {}, table)
    assert (tmp_path / "plan.parquet").stat().st_mode & 0o777 == mode
    extend_plan(tmp_path, plan, {}, table)
    (extended,) = tmp_path.glob("plan-0001-*.parquet")
    assert extended.stat().st_mode & 0o777 == mode


def test_a_name_can_neither_break_a_line_nor_steer_a_terminal(tmp_path, vidvq):
    hostile = "a\nwarning: \x1b[31mred\x07\u202e4pm.mp4"
    said = r"a\nwarning: \x1b[31mred\x07\u202e4pm.mp4"
    assert printable(hostile) == said and printable("naïve 日本.mp4") == "naïve 日本.mp4"
    (tmp_path / hostile).write_bytes(b"no video")
    settings = ("runtime.workers=0", "max_failed=1")
    ran = vidvq("shard", tmp_path, "--out", tmp_path / "out", *settings)
    assert ran.code == 0 and f"{said}: starts like no known video container" in ran.err
    # A message of a usage error is one line, whatever is in it.
    assert r"\x1b[31mred\x07" in vidvq("inspect", tmp_path / hostile).error
    assert not {"\x1b", "\x07", "\u202e"} & set(ran.err)
