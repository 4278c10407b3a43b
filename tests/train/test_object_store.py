"""Clips in an object store give the same run as clips on a disk."""

from vidvq.data import ClipDataset, DataConfig


def put(folder, bucket) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), f"clips/{path.relative_to(folder)}")
    return f"s3://{bucket.name}/clips"


def test_clips_in_an_object_store_give_the_same_run(clips_dir, bucket, whole, train, tmp_path):
    url = put(clips_dir, bucket)
    run = train(tmp_path / "run", f"data.clips={url}", "data.cache_mib=0", f"evaluation.clips={url}")
    assert "excluded from training" not in run.stderr
    assert [{name: line[name] for name in whole.lines[0]} for line in run.lines if "loss" in line] == whole.lines


def test_a_lost_response_is_retried(clips_dir, bucket, monkeypatch):
    from s3fs import S3FileSystem

    url = put(clips_dir, bucket)
    settings = {"batch_size": 4, "num_frames": 5, "crop": 32}
    disk, store = (ClipDataset(DataConfig((where,), **settings), 0) for where in (str(clips_dir), url))
    real, lost = S3FileSystem._call_s3, []

    async def call(self, method, *arguments, **options):
        if method == "get_object" and options not in lost:
            lost.append(options)
            raise ConnectionError("reset by peer")
        return await real(self, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", call)
    assert (disk[0, 0] == store[0, 0]).all()
    assert lost


def test_an_empty_bucket_is_one_line(bucket, train, tmp_path):
    run = train(tmp_path / "run", f"data.clips=s3://{bucket.name}/none", code=2)
    assert run.stderr.strip().splitlines()[-1].startswith(f"vidvq: s3://{bucket.name}/none has no plan.json")
