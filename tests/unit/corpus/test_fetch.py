"""Failures of a server or a file system become distinct reasons."""

import errno
import io
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from tests.helpers.http_server import QuietHandler, serve
from vidvq.corpus import fetch, public_hosts
from vidvq.corpus.fetch import local_file
from vidvq.corpus.source import Source
from vidvq.storage import resolve_path, sha256_bytes
from vidvq.video import VideoError, stream
from vidvq.video.limits import Limits


@contextmanager
def answering(status: int, location: str = "") -> Iterator[tuple[str, Counter[str]]]:
    """Run a server that responds to every request with one status; yields its URL and the request counts by method."""
    asked: Counter[str] = Counter()

    class Handler(QuietHandler):
        def do_GET(self):
            asked[self.command] += 1
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if location:
                self.send_header("Location", location)
            self.end_headers()

    with serve(Handler) as url:
        yield f"{url}/a.mp4", asked


def failure(source: Source, allow_private: bool = True) -> VideoError:
    with pytest.raises(VideoError) as error, local_file(source, Limits(), allow_private):
        pass
    return error.value


@pytest.mark.parametrize(("uri", "offset"), [("x.tar#a.mp4", 0), ("x.parquet#v/0/a.mp4", 0), ("memory://x.mp4", -1)])
def test_a_video_that_is_known_to_be_too_large_is_not_fetched(tmp_path, monkeypatch, uri, offset):
    monkeypatch.setattr(fetch, "_open", lambda *_: pytest.fail("opened"))
    for name in ("x.tar", "x.parquet"):
        (tmp_path / name).touch()
    source = Source(uri if offset < 0 else f"{tmp_path}/{uri}", 10, "", offset)
    with (
        pytest.raises(VideoError, match="too_large: has over limits.max_bytes=9 bytes"),
        local_file(source, Limits(max_bytes=9)),
    ):
        pass


def test_a_download_of_unknown_size_ends_at_the_limit(monkeypatch):
    monkeypatch.setattr(fetch, "_CHUNK_BYTES", 4)
    file = io.BytesIO(bytes(100))
    monkeypatch.setattr(fetch, "_open", lambda *_: nullcontext(file))
    with (
        pytest.raises(VideoError, match="too_large: has over limits.max_bytes=9 bytes"),
        local_file(Source("memory://x.mp4"), Limits(max_bytes=9)),
    ):
        pass
    assert file.tell() == 12


def test_a_file_without_a_version_is_compared_by_its_digest(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    with local_file(Source(str(path)), Limits(), sha256=sha256_bytes(b"video")) as found:
        assert found == path
    with (
        pytest.raises(VideoError, match="changed_since_plan"),
        local_file(Source(str(path)), Limits(), sha256=sha256_bytes(b"other")),
    ):
        pass


def test_a_copy_that_another_job_made_is_held_to_the_own_limit():
    resolve_path("memory://shared.mp4").write_bytes(b"0123456789")
    source, digest = Source("memory://shared.mp4"), sha256_bytes(b"0123456789")
    with (
        local_file(source, Limits(), sha256=digest),
        pytest.raises(VideoError, match="too_large"),
        local_file(source, Limits(max_bytes=9), sha256=digest),
    ):
        pass


def test_the_wait_for_anothers_download_is_none_of_the_own_time(monkeypatch):
    """Two downloads may take longer than the limit of one, after which the process is ended."""
    resolve_path("memory://shared.mp4").write_bytes(b"video")
    limits, running = [], []

    @contextmanager
    def pause(seconds: float) -> Iterator[None]:
        limits.append(seconds)
        running.append(None)
        yield
        running.pop()

    @contextmanager
    def shared_copy(*_) -> Iterator[None]:
        # The process that made the copy has failed.
        assert running
        yield None

    monkeypatch.setattr(fetch, "pause", pause)
    monkeypatch.setattr(fetch, "shared_copy", shared_copy)
    with local_file(
        Source("memory://shared.mp4"), Limits(download_deadline_s=5), sha256=sha256_bytes(b"video")
    ) as path:
        assert path.read_bytes() == b"video" and not running
    assert limits == [5 + fetch._GRACE_S] * 2


def test_a_tar_that_ends_early_since_it_was_planned_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(bytes(1056))
    error = failure(Source(f"{tmp_path}/x.tar#a.mp4", 100, "", 1024))
    assert str(error) == "changed_since_plan: ends after 32 of its 100 bytes in the tar"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_fault_of_the_video(tmp_path, monkeypatch, number):
    def copy(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fetch, "_copy", copy)
    (tmp_path / "x.tar").write_bytes(b"video")
    with (
        pytest.raises(OSError, match=os.strerror(number)) as error,
        local_file(Source(f"{tmp_path}/x.tar#a", 5, "", 0), Limits(max_bytes=9)),
    ):
        pass
    # It must not become one on the way to the account of the job, either.
    with pytest.raises(OSError, match=os.strerror(number)):
        fetch.as_video_error(error.value)


@pytest.mark.parametrize("sniffed", [False, True])
def test_a_process_without_free_descriptors_is_no_fault_of_the_video(tmp_path, make_video, monkeypatch, sniffed):
    path = make_video(tmp_path / "x.mkv", 3)
    if sniffed:
        monkeypatch.setattr(stream, "container_format", lambda path: "matroska")
    lowest, limits = os.open(os.devnull, os.O_RDONLY), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(VideoError) as error:
            stream.open_video(path, 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)) as fault:
        fetch.as_video_error(error.value)
    assert type(fault.value) is OSError and fault.value.filename == str(path)


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


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433"])
def test_a_private_address_is_not_connected_to(host):
    with answering(200) as (url, asked):
        error = failure(Source(url.replace("127.0.0.1", host)), allow_private=False)
    assert error.reason in {"fetch_failed(private_address)", "fetch_failed"} and not asked
    if host == "localhost":
        assert "localhost leads to" in error.detail and "lists.allow_private=true" in error.detail


def test_a_redirect_to_a_private_address_is_not_followed(monkeypatch):
    # The first server counts as public, what it redirects to does not.
    real = public_hosts.is_public
    with answering(200) as (secret, asked), answering(302, secret.replace("127.0.0.1", "127.0.0.2")) as (url, first):
        monkeypatch.setattr(public_hosts, "is_public", lambda address: address == "127.0.0.1" or real(address))
        error = failure(Source(url), allow_private=False)
    assert error.reason == "fetch_failed(private_address)" and "127.0.0.2" in error.detail
    assert first and not asked


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("2002:808:808::", True),
    ],
)
def test_which_addresses_are_public(address, public):
    assert public_hosts.is_public(address) == public


def test_a_fifo_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert failure(Source(str(tmp_path / "pipe.mp4"))).detail == "is not a regular file"


def test_an_entry_that_cannot_be_read_fails_with_its_own_reason(tmp_path):
    assert failure(Source(str(tmp_path), version="!bad_name: has a name")).reason == "bad_name"
