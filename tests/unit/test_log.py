"""Progress as plain lines, and on terminals."""

import io
import sys

import pytest
from rich.console import Console

from vidvq import log


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: ``clock[0] += seconds``."""
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("number", "text"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards")])
def test_a_unit_is_singular_after_one(number, text):
    assert log.counted(number, "shards") == text


def test_a_finished_job_shows_how_long_it_took(clock, capsys):
    with log.progress("shard", 8, "clips") as bar:
        clock[0] += 4
        bar.advance(8, "0 failed")
    assert capsys.readouterr().err == "shard: 8/8, 2.0 clips/s, took 0:00:04, 0 failed\n"


def test_work_of_an_earlier_run_does_not_count_for_the_rate(clock, capsys):
    with log.progress("decode", 10, "clips") as bar:
        bar.advance(6, earlier=True)
        clock[0] += 20
        bar.advance(2)
        clock[0] += 20
        bar.advance(2)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "decode: 8/10, 10.0 s/clip, eta 0:00:20"
    assert last == "decode: 10/10, 10.0 s/clip, took 0:00:40"


def test_a_finished_job_says_that_nothing_was_left_to_do(clock, capsys):
    with log.progress("decode", 2, "clips") as bar:
        clock[0] += 0.001
        bar.advance(2, earlier=True)
    assert capsys.readouterr().err == "decode: 2/2, done before\n"


def test_without_a_total_the_unit_is_named(clock, capsys):
    with log.progress("list", None, "videos") as bar:
        clock[0] += 2
        bar.advance(8)
    assert capsys.readouterr().err == "list: 8 videos, 4.0 videos/s\n"


def test_the_last_line_is_not_repeated(clock, capsys):
    with log.progress("sample", 1, "shards") as bar:
        clock[0] += 30
        bar.count_ahead()
        bar.advance(note="0 failed")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_job_without_progress_shows_the_time(clock, capsys):
    with log.progress("predict", 3, "samples"):
        clock[0] += 75
    assert capsys.readouterr().err == "predict: 0/3, 0:01:15 so far\n"


def test_units_ahead_are_shown_and_counted_once(clock, capsys):
    with log.progress("tokenize", 4, "clips") as bar:
        clock[0] += 20
        bar.count_ahead()
        clock[0] += 20
        bar.count_ahead()
        bar.advance(2)
        clock[0] += 40
        bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "tokenize: 1/4, 20.0 s/clip, eta 0:01:00",
        "tokenize: 2/4, 20.0 s/clip, eta 0:00:40",
        "tokenize: 4/4, 20.0 s/clip, took 0:01:20",
    ]


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Make stderr a terminal of a width and kind; returns what is written to it."""

    def make(width: int, kind: str) -> Screen:
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        console = Console(file=screen, width=width, soft_wrap=True, no_color=True, _environ={"TERM": kind})
        monkeypatch.setattr(log, "console", console)
        return screen

    return make


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (120, "\u2501" * 28 + " generate: 1000/1000, 100.0 samples/s, took 0:00:10, 0 failed"),
        (40, "generate: 1000/1000, 100.0 samples/s, t\u2026"),
    ],
)
def test_a_terminal_shows_one_line_cut_at_its_edge(clock, terminal, width, shown):
    screen = terminal(width, "xterm")
    with log.progress("generate", 1000, "samples") as bar:
        clock[0] += 10
        bar.advance(1000, "0 failed")
    lines = screen.getvalue().replace("\x1b[2K", "").replace("\x1b[?25h", "").splitlines()
    assert shown in lines and screen.getvalue().count("\n") == 1


def test_a_terminal_that_cannot_redraw_a_line_shows_plain_lines(clock, terminal):
    screen = terminal(80, "dumb")
    with log.progress("shard", 4, "clips") as bar:
        clock[0] += 20
        bar.advance(2)
        clock[0] += 20
        bar.advance(2)
    assert screen.getvalue().splitlines() == [
        "shard: 2/4, 10.0 s/clip, eta 0:00:20",
        "shard: 4/4, 10.0 s/clip, took 0:00:40",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (999_960, "1.0 MB"), (47_000_000, "47.0 MB"), (2.5e12, "2.5 TB")],
)
def test_bytes_have_the_unit_that_fits(count, text):
    assert log.in_bytes(count) == text
