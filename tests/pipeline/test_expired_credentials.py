"""Expired credentials stop a job with one line; after renewal the same command finishes it, with nothing failed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.http_server import QuietHandler, serve
from vidvq.corpus.source import Source
from vidvq.errors import JobStopped
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import has_plan, read_plan
from vidvq.jobs import access
from vidvq.jobs.access import AccessWatch, needs_credentials
from vidvq.shard.rows import PlannedClip

RUN = ("runtime.workers=0", "lists.allow_private=true")
SETTINGS = "clip.num_frames=4 clip.min_frames=4 clip.short_side=32 filters.duplicates=false clips_per_shard=4".split()
NUM_VIDEOS = 6


@dataclass
class Server:
    """Serves videos of 8 frames; ``denies`` decides by the path of a request."""

    url: str = ""
    denies: Callable[[str], bool] = field(default=lambda path: False)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path, make_video) -> Iterator[Server]:
    data = make_video(tmp_path / "served.mp4", 8).read_bytes()
    state = Server()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            # Files of one content would share their copies; a box of one byte at the end, to skip, tells them apart.
            body = b"" if state.denies(self.path) else data + b"\0\0\0\x09free" + self.path[1].encode()
            self.send_response(200 if body else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    with serve(Handler) as state.url:
        yield state


@pytest.fixture
def job(server, tmp_path, monkeypatch) -> tuple[object, ...]:
    monkeypatch.setattr("vidvq.corpus.fetch._PAUSE_S", 0)
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{server.url}/{number}.mp4?sig=secret{number}\n" for number in range(NUM_VIDEOS)))
    return ("shard", listed, "--out", tmp_path / "out", *SETTINGS, *RUN)


@pytest.fixture
def tokenize_job(job, checkpoint_dir) -> tuple[object, ...]:
    _, listed, *out = job[:4]
    settings = ("video.short_side=32", "video.multiple=8", "gop_frames=5", "items_per_shard=4")
    return ("tokenize", listed, "--checkpoint", checkpoint_dir, *out, *settings, *RUN)


def check_finished(out: Path) -> None:
    commits = [read_commit(out, name) for name in read_plan(out).shard_names()]
    assert all(commit and not commit.failed for commit in commits)
    assert sum(commit.ok for commit in commits if commit) == 2 * NUM_VIDEOS


@pytest.mark.parametrize("served", [0, 3])
def test_credentials_that_expire_in_planning_stop_it(server, job, vidvq, tmp_path, served):
    server.denies = lambda path: int(path[1]) >= served or len(server.asked) > 3 * served
    ran = vidvq(*job)
    assert ran.code == 1 and "the server denies access (401, 403)" in ran.error, ran.err
    assert "secret" not in ran.err and not has_plan(tmp_path / "out")
    server.denies = lambda path: False
    assert vidvq(*job).code == 0
    check_finished(tmp_path / "out")


@pytest.mark.parametrize(("name", "answered"), [("job", 5), ("tokenize_job", 6)])
def test_credentials_that_expire_in_the_work_stop_it(server, name, answered, request, vidvq, tmp_path, monkeypatch):
    from vidvq.jobs import run

    job, made = request.getfixturevalue(name), run._make_shards
    out = tmp_path / "out"

    def expire(*arguments: object) -> None:
        begun = len(server.asked)
        server.denies = lambda path: len(server.asked) > begun + answered
        made(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(run, "_make_shards", expire)
        ran = vidvq(*job)
    assert ran.code == 1 and "the server denies access" in ran.error and "renew the credentials" in ran.error
    commits = [read_commit(out, name) for name in read_plan(out).shard_names()]
    assert any(commits) and None in commits
    assert not any(commit.failed for commit in commits if commit)
    # Not renewed yet.
    assert vidvq(*job).code == 1
    server.denies = lambda path: False
    assert vidvq(*job).code == 0
    check_finished(out)


def test_one_denied_video_among_others_is_a_failed_one(server, job, vidvq, tmp_path):
    server.denies = lambda path: path[1] in "25"
    assert vidvq(*job).code == 1
    rows = list(read_plan(tmp_path / "out").rows(PlannedClip))
    assert [row.reason for row in rows if row.reason] == ["fetch_failed(403)"] * 2


def test_a_job_may_count_denied_videos_as_failed(server, job, vidvq, tmp_path):
    server.denies = lambda path: True
    assert vidvq(*job, "limits.allow_denied=true").code == 1
    assert len(list(read_plan(tmp_path / "out").rows(PlannedClip))) == NUM_VIDEOS


def test_a_store_that_denies_is_a_403(monkeypatch):
    from vidvq.corpus.fetch import _failure
    from vidvq.storage import resolve_path

    failure, _ = _failure(PermissionError("The provided token has expired."), resolve_path("s3://bucket/a.mp4"))
    assert failure.reason == "fetch_failed(403)" and "expired" in failure.detail


@pytest.mark.parametrize(
    ("uri", "needs"),
    [
        ("s3://b/a.mp4", True),
        ("https://h/a.mp4?X-Amz-Signature=1", True),
        ("https://me:word@h/a.mp4", True),
        ("https://h/a.mp4", False),
        ("/videos/a.mp4", False),
    ],
)
def test_which_sources_are_read_with_credentials(uri, needs):
    assert needs_credentials(Source(uri)) == needs


def test_denied_sources_in_a_row_stop_a_job_only_if_access_is_gone(monkeypatch):
    gone = False
    monkeypatch.setattr(access, "is_denied", lambda source, allow_private: gone)
    watch = AccessWatch()
    watch.record(Source("s3://b/0"), {""})
    for number in range(100):
        watch.record(Source(f"s3://b/private/{number}"), {"fetch_failed(403)"})
    watch.record(Source("s3://b/1"), {""})
    gone = True
    # The newest one was served.
    watch.check()
    for number in range(3):
        watch.record(Source(f"s3://b/private/{number}"), {"fetch_failed(403)"})
    with pytest.raises(JobStopped, match="to 3 sources in a row, such as s3://b/private/0"):
        watch.check()
