"""`vidvq export` from and to an object store (a real S3 server on loopback): the same bytes as on a disk."""

import pytest

from vidvq.export import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_exporting_in_a_bucket_writes_the_same_bytes_as_on_a_disk(
    bucket, objects, tokens_dir, tmp_path, snapshot, vidvq, target
):
    for path in tokens_dir.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), f"in/{path.relative_to(tokens_dir).as_posix()}")
    disk, remote = tmp_path / "disk", f"s3://{bucket.name}/out"
    assert vidvq("export", tokens_dir, "--to", target, "--out", disk).code == 0
    ran = vidvq("export", f"s3://{bucket.name}/in", "--to", target, "--out", remote, "--check")
    assert ran.code == 0, ran.err
    found = {name.removeprefix("out/"): data for name, data in objects().items() if name.startswith("out/")}
    assert found == {name: (disk / name).read_bytes() for name in snapshot(disk)}
    ran = vidvq("verify", remote)
    assert ran.code == 0, ran.out
    assert "an export to " in vidvq("inspect", remote).out
