"""Failures of a server or a file system become distinct reasons."""

import http.server
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vidvq.corpus import fetch
from vidvq.corpus.fetch import local_file
from vidvq.corpus.source import Source
from vidvq.video import VideoError


@contextmanager
def answering(status: int) -> Iterator[tuple[str, Counter[str]]]:
    """Run a server that responds to every request with one status; yields its URL and the request counts by method."""
    asked: Counter[str] = Counter()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.command] += 1
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.mp4", asked
        server.shutdown()


def failure(source: Source) -> VideoError:
    with pytest.raises(VideoError) as error, local_file(source, 1 << 20):
        pass
    return error.value


@pytest.mark.parametrize(("status", "tries"), [(403, 3), (404, 1), (410, 1), (429, 3), (500, 3)])
def test_the_http_status_is_the_reason_and_transient_errors_are_retried(monkeypatch, status, tries):
    pauses: list[float] = []
    monkeypatch.setattr(fetch.time, "sleep", pauses.append)
    with answering(status) as (url, asked):
        error = failure(Source(url))
    assert error.reason == f"fetch_failed({status})" and f"answers {status}" in error.detail
    assert asked["GET"] == tries
    assert [pause for pause in pauses if pause >= 1] == [1.0, 2.0][: tries - 1]


def test_an_unknown_host_has_its_own_reason(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSE_S", 0)

    def refuse(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    error = failure(Source("http://nowhere.invalid/a.mp4"))
    assert error.reason == "fetch_failed(unknown_host)" and "nowhere.invalid" in error.detail


def test_a_fifo_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert failure(Source(str(tmp_path / "pipe.mp4"))).detail == "is no regular file"


def test_an_entry_that_cannot_be_read_fails_with_its_own_reason(tmp_path):
    assert failure(Source(str(tmp_path), version="!bad_name: has a name")).reason == "bad_name"
