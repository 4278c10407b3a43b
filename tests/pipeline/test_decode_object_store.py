"""`vidvq decode` to an object store (a real S3 server on loopback): the same bytes as on a disk."""

from collections.abc import Callable

import pytest

from vidvq.formats.token_index import index_tokens

INLINE = "runtime.workers=0"


@pytest.fixture
def stored(objects) -> Callable[[], dict[str, bytes]]:
    """Return the objects below ``out/`` by name."""
    return lambda: {name.removeprefix("out/"): data for name, data in objects().items() if name.startswith("out/")}


@pytest.fixture
def weights(checkpoint_dir) -> tuple[str, str]:
    return "--checkpoint", str(checkpoint_dir)


@pytest.mark.parametrize(("kind", "workers"), [("mp4", 0), ("gif", 0), ("npy", 2)])
def test_decoding_to_a_bucket_writes_the_same_bytes_as_on_a_disk(
    kind, workers, bucket, stored, tokens_dir, weights, tmp_path, snapshot, vidvq
):
    job = ("decode", tokens_dir, *weights, f"format={kind}", "--out")
    assert vidvq(*job, tmp_path / "disk", INLINE).code == 0
    disk = {name: (tmp_path / "disk" / name).read_bytes() for name in snapshot(tmp_path / "disk")}
    ran = vidvq(*job, f"s3://{bucket.name}/out", f"runtime.workers={workers}")
    assert ran.code == 0, ran.err
    assert stored() == disk
    gone = next(name for name in disk if name.endswith(f".{kind}"))
    bucket.Object(f"out/{gone}").delete()
    ran = vidvq(*job, f"s3://{bucket.name}/out", INLINE)
    assert ran.code == 0, ran.err
    assert stored() == disk


def test_a_bucket_never_mixes_settings(bucket, stored, tokens_dir, weights, tmp_path, vidvq):
    job = ("decode", tokens_dir, *weights, "--out", f"s3://{bucket.name}/out", INLINE)
    assert vidvq(*job, "format=mp4", "crf=30").code == 0
    before = stored()
    ran = vidvq(*job, "format=mp4", "crf=10")
    assert ran.code == 2 and "other settings: crf was 30, now 10" in ran.error
    assert stored() == before
    bucket.put_object(Key="out/other.mp4", Body=b"other")
    ran = vidvq(*job, "format=mp4", "crf=10", "--force")
    assert ran.code == 2 and "--force would keep other.mp4" in ran.error
    bucket.Object("out/other.mp4").delete()
    assert stored() == before
    ran = vidvq(*job, "format=mp4", "crf=10", "--force")
    assert ran.code == 0, ran.err
    assert stored().keys() == before.keys()
    assert all(stored()[name] != data for name, data in before.items())


@pytest.mark.parametrize("kind", ["mp4", "gif", "npy"])
def test_one_clip_in_a_bucket(kind, bucket, stored, tokens_dir, weights, tmp_path, vidvq):
    key = index_tokens(tokens_dir)[0].key
    job = ("decode", tokens_dir, *weights, "--key", key, INLINE, "--out")
    assert vidvq(*job, tmp_path / f"clip.{kind}").code == 0
    ran = vidvq(*job, f"s3://{bucket.name}/out/clip.{kind}")
    assert ran.code == 0, ran.err
    found = stored()
    assert found == {path.name: path.read_bytes() for path in tmp_path.glob("clip.*")}


def test_a_folder_of_png_in_a_bucket_is_refused(bucket, stored, tokens_dir, weights, vidvq):
    ran = vidvq("decode", tokens_dir, *weights, "--out", f"s3://{bucket.name}/out", "format=png", INLINE)
    assert ran.code == 2 and f"format=png cannot be written to s3://{bucket.name}/out" in ran.error
    assert not stored()
