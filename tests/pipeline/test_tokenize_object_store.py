"""`vidvq tokenize` from and to an object store (a real S3 server on loopback): the same bytes as on a disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

INLINE = "runtime.workers=0"


@pytest.fixture(params=["clips", "videos"])
def source(request, bucket, clips_dir, make_video, tmp_path) -> tuple[str, list[str]]:
    """URL of clip shards or videos in the bucket, and the settings to tokenize them."""
    if request.param == "clips":
        folder, settings = clips_dir, []
    else:
        folder = tmp_path / "videos"
        folder.mkdir()
        for name, frames in (("a", 20), ("b", 12)):
            make_video(folder / f"{name}.mp4", frames)
        settings = ["video.short_side=32", "video.multiple=8", "gop_frames=9", "items_per_shard=2"]
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), f"in/{path.relative_to(folder).as_posix()}")
    return f"s3://{bucket.name}/in", settings


@pytest.fixture
def same(objects, snapshot) -> Callable[[Path], None]:
    """Assert that ``out/`` in the bucket has exactly the files of a folder."""

    def check(folder: Path) -> None:
        found = {name.removeprefix("out/"): data for name, data in objects().items() if name.startswith("out/")}
        assert found.pop("metrics.json")
        assert found == {name: (folder / name).read_bytes() for name in snapshot(folder)}

    return check


@pytest.mark.parametrize(
    ("source", "workers"),
    [("clips", 0), ("videos", 0), ("clips", 2), pytest.param("videos", 2, marks=pytest.mark.slow)],
    indirect=["source"],
)
def test_tokenizing_in_a_bucket_writes_the_same_bytes_as_on_a_disk(
    source, workers, bucket, same, checkpoint_dir, tmp_path, snapshot, vidvq
):
    url, settings = source
    out = f"s3://{bucket.name}/out"
    job = ("tokenize", url, "--checkpoint", checkpoint_dir, *settings, "--out")
    assert vidvq(*job, tmp_path / "disk", INLINE).code == 0
    for where in workers, 0:
        ran = vidvq(*job, out, f"runtime.workers={where}")
        assert ran.code == 0, ran.err
        same(tmp_path / "disk")
    ran = vidvq("verify", out)
    assert ran.code == 0, ran.out
    for tokens, to in (out, "remote"), (tmp_path / "disk", "local"):
        ran = vidvq("decode", tokens, "--checkpoint", checkpoint_dir, "--out", tmp_path / f"decoded-{to}", "format=npy")
        assert ran.code == 0, ran.err
    assert snapshot(tmp_path / "remote") == snapshot(tmp_path / "local")


def test_a_lost_response_neither_loses_nor_duplicates_tokens(
    source, bucket, same, checkpoint_dir, tmp_path, lose_answers, vidvq
):
    url, settings = source
    job = ("tokenize", url, "--checkpoint", checkpoint_dir, *settings, INLINE, "--out")
    assert vidvq(*job, tmp_path / "disk").code == 0
    lost = lose_answers("out/")
    ran = vidvq(*job, f"s3://{bucket.name}/out")
    assert ran.code == 0, ran.err
    assert len(lost) >= 7, "every write had its first answer lost"
    same(tmp_path / "disk")


# By default, test_object_store.py updates clips in a bucket, and test_tokenize_update.py tokens on a disk.
@pytest.mark.slow
@pytest.mark.parametrize("source", ["videos"], indirect=True)
def test_updates_of_a_corpus_work_in_a_bucket(source, bucket, objects, make_video, checkpoint_dir, tmp_path, vidvq):
    url, settings = source
    job = ("tokenize", "--checkpoint", checkpoint_dir, INLINE, "max_failed=1", "--out")
    out = f"s3://{bucket.name}/out"
    bucket.put_object(Key="in/c.mp4", Body=b"RIFF")
    assert vidvq(*job, out, url, *settings).code == 0
    new = make_video(tmp_path / "new.mp4", 12)
    bucket.upload_file(str(new), "in/c.mp4")
    bucket.upload_file(str(new), "in/d.mp4")
    # The listing of a store does not show every change; failed items are probed again.
    for change in (["--retry-failed"], [url, "--add"], ["--remove", f"{url}/a.mp4"], [url, *settings]):
        ran = vidvq(*job, out, *change)
        assert ran.code == 0, ran.err
        ran = vidvq("verify", out)
        assert ran.code == 0, ran.out
    names = {name.removeprefix("out/") for name in objects() if name.startswith("out/tokens-")}
    assert names == {"tokens-000001-r3.tar", "tokens-000002-r1.tar", "tokens-000003.tar", "tokens-000004.tar"}
    bucket.Object("in/a.mp4").delete()
    for folder, to in (out, "changed"), (tmp_path / "anew", "anew"):
        if to == "anew":
            assert vidvq(*job, folder, url, *settings).code == 0
        ran = vidvq("decode", folder, "--checkpoint", checkpoint_dir, "--out", tmp_path / f"decoded-{to}", "format=npy")
        assert ran.code == 0, ran.err
    changed, anew = (
        {path.name: path.read_bytes() for path in (tmp_path / f"decoded-{to}").glob("*.npy")}
        for to in ("changed", "anew")
    )
    assert changed == anew and anew


def test_a_damaged_clip_shard_in_a_bucket_is_a_one_line_error(
    bucket, objects, clips_dir, checkpoint_dir, tmp_path, vidvq
):
    for path in clips_dir.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            data = data[:-1] + b"x" if path.name == "clips-000000.tar" else data
            bucket.put_object(Key=f"in/{path.relative_to(clips_dir).as_posix()}", Body=data)
    out = f"s3://{bucket.name}/out"
    ran = vidvq("tokenize", f"s3://{bucket.name}/in", "--checkpoint", checkpoint_dir, "--out", out, INLINE)
    assert ran.code == 2 and "in/clips-000000.tar" in ran.error and f"vidvq verify s3://{bucket.name}/in" in ran.error
    assert not [name for name in objects() if name.startswith("out/tokens-")]


def test_a_checkpoint_in_a_bucket_gives_the_tokens_of_its_copy_on_a_disk(
    bucket, clips_dir, checkpoint_dir, tmp_path, snapshot, vidvq
):
    for path in checkpoint_dir.iterdir():
        if path.is_file():
            bucket.upload_file(str(path), f"checkpoint/{path.name}")
    url = f"s3://{bucket.name}/checkpoint"
    for name, checkpoint in ("disk", checkpoint_dir), ("store", url):
        ran = vidvq("tokenize", clips_dir, "--checkpoint", checkpoint, "--out", tmp_path / name, INLINE)
        assert ran.code == 0, ran.err
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "disk")
    for verb in "verify", "inspect":
        ran = vidvq(verb, url)
        assert ran.code == 0, ran.err + ran.out
    bucket.Object("checkpoint/model.safetensors").put(Body=b"x" * 100)
    ran = vidvq("tokenize", clips_dir, "--checkpoint", url, "--out", tmp_path / "other", INLINE)
    assert ran.code == 2 and "model.safetensors is damaged" in ran.error
