"""A disk that fills up during a save: a one-line error, intact checkpoints, and a resumable run."""

import pytest

from vidvq.formats.checkpoint import list_steps, read_checkpoint


def kib_of(folder) -> int:
    """What the files below a folder take in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


# In shares of a checkpoint: into the first, and into the second's training state and weights.
@pytest.mark.parametrize("room", [1.95, *(pytest.param(room, marks=pytest.mark.slow) for room in (0.5, 1.5))])
def test_a_run_resumes_once_there_is_disk_space(room, small_disk, whole, train):
    size = kib_of(whole.out / "checkpoints/step-00000003")
    out = small_disk(kib_of(whole.out / "tensorboard") + round(room * size)) / "run"
    run = train(out, code=1)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("vidvq: No space left on device: ") and last.endswith("run the same command again to resume")
    assert "Traceback" not in run.stderr
    assert [folder.name for folder in list_steps(out)] == ["step-00000003"][: int(room)]
    assert {path.name for path in (out / "checkpoints").glob("*")} == {folder.name for folder in list_steps(out)}
    small_disk(4 * size)
    again = train(out)
    assert ("resuming from" in again.stderr) == (room > 1)
    assert again.lines == whole.lines
    assert read_checkpoint(out).fingerprints == read_checkpoint(whole.out).fingerprints
