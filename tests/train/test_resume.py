"""Resume: with another number of ranks, another ZeRO stage, a torn checkpoint, or after a bad batch."""

import json
import shutil

import pytest

from vidvq.formats.checkpoint import list_steps, read_checkpoint


def stopped_at_3(run, tmp_path):
    """A copy of a run as it was after step 3."""
    out = shutil.copytree(run.out, tmp_path / "run")
    shutil.rmtree(out / "checkpoints/step-00000006")
    return out


def test_a_resumed_run_is_bit_identical(whole, train, tmp_path):
    out = stopped_at_3(whole, tmp_path)
    for left in (".training-00000006", "step-00000006.tmp.host-1-0"):
        (out / "checkpoints" / left).mkdir()
        (out / "checkpoints" / left / "model.safetensors").touch()
    run = train(out)
    assert "resuming from" in run.stderr
    print(run.stderr, run.column("grad_norm"))
    assert run.lines == whole.lines
    assert {path.name for path in (out / "checkpoints").iterdir()} == {folder.name for folder in list_steps(out)}
    assert read_checkpoint(run.out).fingerprints == read_checkpoint(whole.out).fingerprints


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_with_offloaded_optimizers_is_bit_identical(train, tmp_path, stage):
    settings = (f"zero_stage={stage}", "generator.offload=true", "discriminator_optimizer.offload=true")
    whole = train(tmp_path / "whole", *settings)
    run = train(stopped_at_3(whole, tmp_path), *settings)
    assert "resuming from" in run.stderr
    print(run.stderr, run.column("grad_norm"))
    assert run.lines == whole.lines
    assert read_checkpoint(run.out).fingerprints == read_checkpoint(whole.out).fingerprints


LARGE_SCALE = """
import functools, torch
torch.amp.GradScaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**22)
"""


@pytest.mark.slow
def test_a_resumed_run_in_fp16_keeps_its_loss_scale(train, tmp_path):
    whole = train(tmp_path / "whole", "precision=fp16", patch=LARGE_SCALE)
    # The first gradients overflow (null in metrics); with the scale of a new run, so would those after step 3.
    assert whole.column("grad_norm")[0] is None and whole.column("grad_norm")[3] > 0
    run = train(stopped_at_3(whole, tmp_path), "precision=fp16", patch=LARGE_SCALE)
    assert "resuming from" in run.stderr
    assert run.lines == whole.lines
    assert read_checkpoint(run.out).fingerprints == read_checkpoint(whole.out).fingerprints


def test_a_run_in_the_old_format_resumes(whole, train, tmp_path):
    out = stopped_at_3(whole, tmp_path)
    training = out / "checkpoints/step-00000003/training"
    state = json.loads((training / "state.json").read_text())
    del state["digest"]
    for old, name in {"generator": "generator_optimizer", "critic": "discriminator_optimizer"}.items():
        (training / f"{name}.safetensors").rename(training / f"{old}.safetensors")
        state["sha256"][old] = state["sha256"].pop(name)
    (training / "state.json").write_text(json.dumps(state | {"format": "vidvq.training/1"}))
    run = train(out)
    assert "step-00000003" in run.stderr
    print(run.stderr, run.column("grad_norm"))
    assert run.lines == whole.lines
    assert read_checkpoint(run.out).fingerprints == read_checkpoint(whole.out).fingerprints


def test_a_training_state_of_an_unknown_format_is_rejected(whole, train, tmp_path):
    out = stopped_at_3(whole, tmp_path)
    path = out / "checkpoints/step-00000003/training/state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "vidvq.training/9"}))
    run = train(out, code=2)
    assert "state.json is not of format vidvq.training/2" in run.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("ranks", [2])
def test_another_number_of_ranks_resumes(whole, train, tmp_path, ranks, close):
    run = train(stopped_at_3(whole, tmp_path), ranks=ranks)
    assert run.column("loss") == close(whole.column("loss"))


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(3, 0), (2, 3)])
def test_one_rank_resumes_the_state_of_two(whole, train, tmp_path, stages, close):
    before = train(tmp_path / "before", f"zero_stage={stages[0]}", ranks=2)
    out = stopped_at_3(before, tmp_path)
    run = train(out, f"zero_stage={stages[1]}", "data.workers=1", "lost_after_s=300")
    assert run.column("loss") == close(whole.column("loss"))


@pytest.fixture(scope="module")
def longer(train, tmp_path_factory):
    """A run with checkpoints at steps 3, 6 and 7."""
    return train(tmp_path_factory.mktemp("longer") / "run", "steps=7")


@pytest.mark.parametrize(
    "name",
    [
        "training/generator_optimizer.safetensors",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("training/state.json", "fingerprint")),
    ],
)
def test_a_torn_checkpoint_is_skipped_with_a_warning(longer, train, tmp_path, name):
    out = shutil.copytree(longer.out, tmp_path / "run")
    shutil.rmtree(out / "checkpoints/step-00000007")
    path = out / "checkpoints/step-00000006" / name
    if name == "fingerprint":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run = train(out, "steps=7")
    assert "resuming from" in run.stderr and "step-00000003" in run.stderr
    assert name == "fingerprint" or "step-00000006 has a" in run.stderr
    assert run.lines == longer.lines
    assert read_checkpoint(run.out).fingerprints == read_checkpoint(longer.out).fingerprints


@pytest.mark.parametrize("name", ["training/average.safetensors", pytest.param("fingerprint", marks=pytest.mark.slow)])
def test_a_run_whose_checkpoints_are_all_damaged_stops(whole, train, tmp_path, name):
    out = stopped_at_3(whole, tmp_path)
    folder = out / "checkpoints/step-00000003"
    (folder / name).unlink()
    run = train(out, code=2)
    assert f"{out / 'checkpoints'} has no complete checkpoint" in run.stderr.strip().splitlines()[-1]
    assert folder.is_dir() and "Traceback" not in run.stderr


def test_the_best_checkpoint_is_kept(train, clips_dir, tmp_path):
    run = train(
        tmp_path / "run",
        "checkpoint_every=1",
        "keep_checkpoints=1",
        f"evaluation.clips={clips_dir}",
        "evaluation.every=1",
        "evaluation.num_clips=2",
        "steps=4",
    )
    scores = {int(line["step"]): line["held_out_psnr"] for line in run.lines if "held_out_psnr" in line}
    best = max(scores, key=lambda step: scores[step])
    kept = {int(folder.name[-8:]) for folder in list_steps(run.out)}
    assert kept == {best, 4}


SCORES = """
from vidvq.train import loop
scores = iter([9.0, 5.0, 7.0, 3.0])
loop.Evaluator.selection_score = lambda self, scored: next(scores)
"""


def test_scores_of_steps_without_a_checkpoint_do_not_select_the_best_one(train, clips_dir, tmp_path):
    evaluation = f"evaluation={{clips: {clips_dir}, every: 1, num_clips: 1}}"
    settings = (evaluation, "steps=4", "checkpoint_every=2", "keep_checkpoints=1")
    run = train(tmp_path / "run", *settings, patch=SCORES)
    assert {int(folder.name[-8:]) for folder in list_steps(run.out)} == {2, 4}
    assert run.stderr.count("best checkpoint so far") == 1
