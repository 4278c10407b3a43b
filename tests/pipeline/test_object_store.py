"""Object stores as input and output, against a real S3 server on loopback; videos over HTTP."""

import errno
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.http_server import serve
from vidvq.corpus.inputs import list_sources
from vidvq.corpus.lists import ListPolicy
from vidvq.errors import UsageError
from vidvq.formats.commit import commit_shard
from vidvq.storage import (
    attempt_file,
    create_once,
    is_remote,
    publish_replace,
    read_file,
    read_json,
    read_range,
    resolve_path,
    write_atomic,
)
from vidvq.storage import files as files_module
from vidvq.storage import objects as objects_module
from vidvq.storage.objects import put_once

SETTINGS = "clip.num_frames=8 clip.min_frames=4 clip.short_side=32 clip.multiple=8 clips_per_shard=3".split()
INLINE = "runtime.workers=0"
DUPLICATES = "filters.duplicates=false"


@pytest.fixture
def videos(tmp_path, bucket, make_video) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, frames in (("a", 20), ("b", 12)):
        make_video(folder / f"{name}.mp4", frames)
    (folder / "c.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/x.ts\n")
    # libav cannot open it, and names the file in its message, which is a temporary copy.
    (folder / "torn.mp4").write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 500)
    for path in folder.iterdir():
        bucket.upload_file(str(path), f"videos/{path.name}")
    return folder


# By default, workers write to a bucket in tests/pipeline/test_tokenize_object_store.py.
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_sharding_in_a_bucket_writes_the_same_bytes_as_on_a_disk(videos, bucket, objects, tmp_path, vidvq, workers):
    source, out = f"s3://{bucket.name}/videos", f"s3://{bucket.name}/out"
    settings = [*SETTINGS, f"runtime.workers={workers}", "max_failed=1"]
    assert vidvq("shard", source, "--out", tmp_path / "disk", *settings).code == 0
    for _ in "first", "again":
        ran = vidvq("shard", source, "--out", out, *settings)
        assert ran.code == 0, ran.err
        found = {name.removeprefix("out/"): data for name, data in objects().items() if name.startswith("out/")}
        disk = {path.relative_to(tmp_path / "disk").as_posix(): path for path in (tmp_path / "disk").rglob("*")}
        written = {name: path.read_bytes() for name, path in disk.items() if path.is_file()}
        # Times differ between runs.
        assert found.keys() == written.keys()
        assert found | {"metrics.json": b""} == written | {"metrics.json": b""}
    assert vidvq("verify", out).code == 0
    ran = vidvq("shard", "--out", out, "--remove", f"{source}/a.mp4", INLINE, "max_failed=1")
    assert ran.code == 0, ran.err
    assert vidvq("verify", out).code == 0
    assert "out/clips-000000.tar" not in objects()


def test_the_test_object_may_be_deleted_by_another_driver(bucket, objects, monkeypatch):
    put = objects_module.put

    def put_and_delete(data, path):
        put(data, path)
        path.unlink()

    monkeypatch.setattr(objects_module, "put", put_and_delete)
    objects_module.check_writable(resolve_path(f"s3://{bucket.name}/out"))
    assert not objects()


def test_a_record_is_read_with_one_request(bucket, objects, monkeypatch):
    import s3fs

    record = resolve_path(f"s3://{bucket.name}/record.json")
    bucket.put_object(Key="record.json", Body=b'{"a": 1}')
    asked = []
    call = s3fs.S3FileSystem._call_s3

    def watched(self, method, *given, **named):
        asked.append(method)
        return call(self, method, *given, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", watched)
    assert read_json(record) == {"a": 1}
    assert asked == ["get_object"]


def test_an_empty_object_is_a_damaged_file_and_no_store_that_does_not_respond(bucket):
    path = resolve_path(f"s3://{bucket.name}/record.json")
    bucket.put_object(Key="record.json", Body=b"")
    with pytest.raises(UsageError, match=r"record\.json is not JSON"):
        read_json(path)
    assert read_file(path) == read_range(path, 5, 10) == b""


def test_a_lost_response_neither_loses_nor_duplicates_clips(
    videos, bucket, objects, tmp_path, vidvq, lose_answers, monkeypatch
):
    lost = lose_answers("out/")
    settings = [*SETTINGS, INLINE, "max_failed=1"]
    ran = vidvq("shard", f"s3://{bucket.name}/videos", "--out", f"s3://{bucket.name}/out", *settings)
    assert ran.code == 0, ran.err
    assert len(lost) >= 6, "every write had its first answer lost"
    monkeypatch.undo()
    assert vidvq("shard", f"s3://{bucket.name}/videos", "--out", tmp_path / "disk", *settings).code == 0
    written = objects()
    for path in (tmp_path / "disk").glob("**/*.*"):
        # Times differ between runs.
        if path.name != "metrics.json":
            assert written[f"out/{path.relative_to(tmp_path / 'disk').as_posix()}"] == path.read_bytes()
    assert vidvq("verify", f"s3://{bucket.name}/out").code == 0


@pytest.mark.parametrize("verb", ["shard", "tokenize"])
def test_a_full_disk_while_fetching_stops_the_job_and_fails_no_video(
    bucket, demo_videos, small_disk, checkpoint_dir, tmp_path, monkeypatch, vidvq, verb
):
    bucket.upload_file(str(demo_videos / "train/phone.mkv"), "videos/a.mkv")
    out = tmp_path / "out"
    job = (verb, f"s3://{bucket.name}/videos", "--out", out, INLINE)
    job = (*job, "--checkpoint", checkpoint_dir, "video.short_side=32") if verb == "tokenize" else (*job, *SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(small_disk(40)))
        ran = vidvq(*job)
    assert ran.code == 1 and "No space left on device" in ran.error
    assert not (out / "plan.json").exists(), "nothing was planned as failed for want of room"
    ran = vidvq(*job)
    assert ran.code == 0, ran.err


def test_create_once_never_overwrites_an_object(bucket, objects):
    path = resolve_path(f"s3://{bucket.name}/x")
    assert is_remote(path)
    assert create_once(path, b"first") and create_once(path, b"first")
    assert not create_once(path, b"second") and not put_once(b"third", path)
    assert objects() == {"x": b"first"}
    write_atomic(path, b"fourth")
    assert objects() == {"x": b"fourth"}


@pytest.fixture
def replace_call(monkeypatch):
    """Replaces a call of all object stores by a function of the store and the arguments."""

    def replace(name: str, function) -> None:
        find = objects_module._store

        def find_other(path):
            store, key = find(path)
            calls = {name: partial(function, store), "info": store.info}
            return SimpleNamespace(**calls), key

        monkeypatch.setattr(objects_module, "_store", find_other)

    return replace


def test_a_store_with_other_words_for_a_taken_name_is_understood(bucket, objects, replace_call):
    def refuse(*_, **options):
        raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")

    path = resolve_path(f"s3://{bucket.name}/x")
    bucket.put_object(Key="x", Body=b"first")
    replace_call("pipe_file", refuse)
    assert not put_once(b"second", path) and put_once(b"first", path)
    with pytest.raises(OSError, match="pre-conditions"):
        objects_module.put(b"second", path)
    with pytest.raises(OSError, match="pre-conditions"):
        put_once(b"first", resolve_path(f"s3://{bucket.name}/y"))
    assert objects() == {"x": b"first"}


def test_an_upload_in_parts_whose_last_response_is_lost_is_there(bucket, tmp_path, replace_call):
    """It is completed a second time, and then not known any more."""

    def lose(store, *given, **options):
        store.put_file(*given, **options)
        raise FileNotFoundError("The specified upload does not exist")

    (tmp_path / "shard").write_bytes(b"whole")
    path = resolve_path(f"s3://{bucket.name}/shard")
    replace_call("put_file", lose)
    assert put_once(tmp_path / "shard", path)
    objects_module.put(tmp_path / "shard", path)
    with pytest.raises(FileNotFoundError):
        put_once(tmp_path / "shard", resolve_path("s3://no-such-bucket/shard"))


def test_a_put_that_fails_leaves_no_temporary_file(bucket, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(files_module, "put_once", refuse)
    monkeypatch.setattr(files_module, "put", refuse)
    out = resolve_path(f"s3://{bucket.name}/out")
    with pytest.raises(PermissionError):
        commit_shard(out, "clips-000000.tar", "plan", lambda draft: draft.add("a", {"json": b"{}"}))
    with pytest.raises(PermissionError):
        with attempt_file(out / "a.mp4") as (_, attempt):
            pass
        publish_replace(attempt, out / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_a_changed_object_is_not_cut_by_the_old_plan(videos, bucket, tmp_path, vidvq, make_video):
    out = tmp_path / "out"
    source = f"s3://{bucket.name}/videos"
    assert vidvq("shard", source, "--out", out, *SETTINGS, INLINE, "max_failed=1").code == 0
    bucket.upload_file(str(make_video(tmp_path / "new.mp4", 16)), "videos/a.mp4")
    ran = vidvq("shard", source, "--out", out, *SETTINGS, INLINE, "max_failed=1")
    assert ran.code == 2 and f"{source}/a.mp4 was changed" in ran.error
    # The shard is missing after a kill, and lists contain no versions.
    (out / "clips-000000.tar").unlink()
    (out / "commits/clips-000000.tar.json").unlink()
    ran = vidvq("shard", "--out", out, "--retry-failed=none", INLINE)
    assert ran.code == 1 and "changed_since_plan" in ran.err


@pytest.mark.parametrize(
    ("source", "out", "said"),
    [
        ("s3://{0}-not/videos", "s3://{0}/out", "-not/videos does not exist"),
        ("s3://{0}/none", "s3://{0}/out", "/none does not exist"),
        ("s3://{0}/videos", "s3://{0}-not/out", "-not/out cannot be written"),
    ],
)
def test_a_missing_bucket_is_a_one_line_error_before_any_work(videos, bucket, objects, vidvq, source, out, said):
    before = objects()
    ran = vidvq("shard", source.format(bucket.name), "--out", out.format(bucket.name), *SETTINGS, INLINE)
    assert ran.code == 2 and said in ran.error
    assert objects() == before


def test_missing_credentials_are_a_one_line_error(videos, bucket, vidvq, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    ran = vidvq("shard", f"s3://{bucket.name}/videos", "--out", f"s3://{bucket.name}/out", *SETTINGS, INLINE)
    S3FileSystem.clear_instance_cache()
    assert ran.code == 1 and "cannot be" in ran.error


def test_videos_over_http_are_fetched_and_a_dead_link_is_a_failed_item(videos, tmp_path, vidvq):
    with serve(partial(SimpleHTTPRequestHandler, directory=str(videos))) as url:
        (tmp_path / "list.csv").write_text(f"url,caption\n{url}/a.mp4,one\n{url}/gone.mp4,two\n{url}/c.mp4,three\n")
        ran = vidvq(
            "shard",
            tmp_path / "list.csv",
            f"{url}/b.mp4",
            "--out",
            tmp_path / "out",
            *SETTINGS,
            INLINE,
            "lists.carry=[caption]",
            "lists.allow_private=true",
        )
    assert ran.code == 1
    assert f"{url}/gone.mp4: the server answers 404" in ran.err and "failed not_a_video: 1" in ran.err
    assert "5 ok, 2 failed" in ran.err
    assert vidvq("verify", tmp_path / "out").code == 0


def test_keys_with_an_empty_part_are_listed_and_read(bucket, make_video, tmp_path, vidvq):
    video = str(make_video(tmp_path / "v.mp4", 8))
    keys = ["v/a.mp4", "v/d//c.mp4", "v/v/g.mp4", "v//b.mp4", "v//e/f.mp4"]
    for key in keys:
        bucket.upload_file(video, key)
    found = list(list_sources([f"s3://{bucket.name}/v"], ListPolicy()))
    assert [source.uri for source in found] == [f"s3://{bucket.name}/{key}" for key in keys]
    assert len({source.version for source in found}) == 1 and found[0].size > 0
    ran = vidvq("shard", f"s3://{bucket.name}/v", "--out", tmp_path / "out", *SETTINGS, INLINE)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("named", ["v", "v/*.mp4"])
def test_a_key_that_no_url_can_name_is_one_failed_item(bucket, make_video, tmp_path, vidvq, named):
    video = str(make_video(tmp_path / "v.mp4", 8))
    for name in ("a?b #%20.mp4", "c::d.mp4", "e.mp4"):
        bucket.upload_file(video, f"v/{name}")
    ran = vidvq("shard", f"s3://{bucket.name}/{named}", "--out", tmp_path / "out", *SETTINGS, INLINE, DUPLICATES)
    assert ran.code == 1 and "2 ok, 1 failed" in ran.err and "c::d.mp4: has :: in its name" in ran.err


@pytest.mark.parametrize("verb", ["verify", "inspect", "shard"])
def test_a_store_that_does_not_respond_is_no_missing_directory(bucket, tmp_path, vidvq, monkeypatch, verb):
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(objects_module, "_PAUSE_S", 0)
    S3FileSystem.clear_instance_cache()
    ran = vidvq(verb, f"s3://{bucket.name}/x", *(["--out", tmp_path / "out", INLINE] if verb == "shard" else []))
    S3FileSystem.clear_instance_cache()
    assert ran.code == 1
    assert "Could not connect" in ran.error
