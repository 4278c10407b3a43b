"""Bad batches and bad states are skipped or rolled back without a trace, with a warning."""

import shutil

import numpy as np
import pytest

from vidvq.formats.checkpoint import read_checkpoint

BLANK = """
from vidvq.train import loop
to_video = loop.to_video
seen = []
def poisoned(frames):
    seen.append(1)
    video = to_video(frames)
    return POISON if len(seen) in BAD else video
loop.to_video = poisoned
"""


def poison(bad: str, what: str) -> str:
    return BLANK.replace("BAD", bad).replace("POISON", what)


def test_a_batch_of_nan_is_skipped_and_leaves_no_trace(train, whole, tmp_path):
    run = train(tmp_path / "run", patch=poison("{2}", "video * 0 + 2e38 * video * 1e38"))
    assert "step 2: batch 1 is skipped: its pixels are not in [-1, 1]" in run.stderr
    assert run.lines[0] == whole.lines[0]
    assert run.lines[1] != whole.lines[1]
    assert len(run.column("loss")) == 6
    assert all(loss < 100 for loss in run.column("loss"))


@pytest.mark.slow
def test_a_black_batch_is_harmless(train, whole, tmp_path):
    run = train(tmp_path / "run", patch=poison("{2}", "video * 0 - 1"))
    assert len(run.column("loss")) == 6
    assert run.column("psnr")[-1] > whole.column("psnr")[-1] - 2


@pytest.mark.slow
def test_a_spike_is_skipped(train, tmp_path):
    noise = poison("{24}", "(video * 1e4).sin().sign()")
    run = train(tmp_path / "run", "steps=26", "guard.spike=1.5", patch=noise)
    assert "step 24: batch 23 is skipped: its loss is" in run.stderr and "the recent median" in run.stderr
    assert max(run.column("loss")[20:]) < 1.5 * min(run.column("loss")[20:])


def test_a_bad_state_is_rolled_back_and_the_data_skipped(train, tmp_path):
    broken = """
import torch
from vidvq.train.trainer import Trainer
finish = Trainer.finish_step
broken = []
def finish_step(self):
    finish(self)
    if self.progress.step == 4 and not broken:
        broken.append(1)
        with torch.no_grad():
            next(iter(self.tokenizer.parameters())).fill_(float("nan"))
Trainer.finish_step = finish_step
"""
    run = train(tmp_path / "run", patch=broken)
    assert "step 5: 4 consecutive batches are bad" in run.stderr
    assert "rolled back to step 3, continuing with batch 8" in run.stderr
    assert [line["step"] for line in run.lines] == [1, 2, 3, 4, 5, 6]
    assert all(loss < 100 for loss in run.column("loss"))


@pytest.mark.parametrize("settings", [(), pytest.param(("zero_stage=3",), marks=pytest.mark.slow)])
def test_weights_that_are_not_finite_are_not_saved(train, tmp_path, settings):
    broken = """
import torch
from vidvq.train.trainer import Trainer
from vidvq.training.engine import local_shard
train = Trainer.forward_backward
broken = []
def forward_backward(self, video, micro_step):
    terms = train(self, video, micro_step)
    if self.progress.step == 5 and not broken:
        broken.append(1)
        with torch.no_grad():
            local_shard(next(iter(self.tokenizer.parameters()))).data.fill_(float("nan"))
    return terms
Trainer.forward_backward = forward_backward
"""
    run = train(tmp_path / "run", *settings, patch=broken)
    message = "step 6: the tokenizer has weights that are not finite; rolled back to step 3, continuing with batch 6"
    assert message in run.stderr
    assert [line["step"] for line in run.lines] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(array).all() for array in read_checkpoint(run.out).tensors.values())


@pytest.mark.slow
def test_a_run_stops_at_the_limit_of_rollbacks(train, tmp_path):
    run = train(tmp_path / "run", "guard.rollbacks=1", code=1, patch=poison("range(2, 99)", "video * float('nan')"))
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("vidvq: step ") and "4 consecutive batches are bad" in last and "after 1 rollbacks" in last
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("precision=fp16", "zero_stage=2"), "zero_stage=2 does not support precision=fp16"),
        (("generator.offload=true",), "offload=true needs zero_stage 1 to 3"),
        (("train_only=decoder",), "set start_from="),
        (("out=s3://bucket/run",), "out=s3://bucket/run must be a directory on a file system"),
        (
            ("data.num_frames=10",),
            "data.num_frames=10 must be 1 + a multiple of model.temporal_factor=4; nearest 9 or 13",
        ),
        (("data.micro_batch_size=3",), "data.batch_size=4 must be a multiple of 1 process x data.micro"),
        (("start_from=/nowhere",), "/nowhere does not exist"),
        (("loss.perceptual=1", "loss.perceptual_net={kind: lpips, net: vgg, backbone: /nowhere.pth}"), "/nowhere.pth"),
        (("evaluation.clips=/nowhere",), "/nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line(train, tmp_path, overrides, message):
    run = train(tmp_path / "run", *overrides, code=2)
    assert "Traceback" not in run.stderr
    assert message in run.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("model.encoder={channels: [8, 24], blocks: [1, 1]}", "tokenizer"),
        pytest.param("discriminator.channels=16", "discriminator", marks=pytest.mark.slow),
    ],
)
def test_a_config_that_does_not_match_the_checkpoint_is_one_line(train, whole, tmp_path, change, part, snapshot):
    out = shutil.copytree(whole.out, tmp_path / "run")
    before = snapshot(out / "checkpoints")
    run = train(out, "steps=8", change, code=2)
    assert f"{out} belongs to a run with another config" in run.stderr
    # As where someone took the checkpoints along and nothing else.
    (out / "config.yaml").unlink()
    run = train(out, "steps=8", change, code=2)
    assert f"step-00000006 has another {part} than this config; use" in run.stderr.strip().splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert snapshot(out / "checkpoints") == before


def test_start_from_another_model_is_one_line(train, whole, tmp_path):
    run = train(tmp_path / "run", f"start_from={whole.out}", "model.quantizer.dim=2", code=2)
    assert "has another model: model.quantizer.dim was 3, now 2" in run.stderr.strip().splitlines()[-1]


def test_a_truncated_shard_is_reported_by_name(train, clips_dir, copy_of, tmp_path):
    clips = copy_of(clips_dir)
    shard = sorted(clips.glob("*.tar"))[1]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[: size // 2])
    run = train(tmp_path / "run", f"data.clips={clips}", code=2)
    said = f"vidvq: {shard} has {size // 2} bytes, not the {size} of its record; run vidvq verify {clips}"
    assert run.stderr.strip() == said


def test_more_ranks_than_clips_of_a_batch_are_rejected(train, tmp_path):
    run = train(tmp_path / "run", ranks=3, code=2)
    told = [line for line in run.stderr.splitlines() if line.startswith("vidvq: ")]
    assert told == ["vidvq: data.batch_size=4 must be a multiple of 3 processes"] * 3


def test_a_process_that_never_finds_the_others_reports_a_lost_worker(train, tmp_path):
    group = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    run = train(tmp_path / "run", "lost_after_s=1", code=1, patch=f"import os; os.environ.update({group})")
    line = run.stderr.strip().splitlines()[-1]
    assert line.startswith("vidvq: process 1 of 2 lost contact with another process: ")
