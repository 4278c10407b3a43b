"""Every loss at once, under every ZeRO stage; and a decoder trained on a frozen encoder."""

from statistics import mean

import numpy as np
import pytest

from vidvq.formats.checkpoint import read_checkpoint
from vidvq.runtime import RuntimeConfig
from vidvq.shard import ShardConfig, run_shard
from vidvq.shard.config import ClipPolicy

ALL = (
    "loss={l1: 1.0, l2: 1.0, wavelet: 1.0, perceptual: {begin: 0.0, end: 1.0, last: 4}, perceptual_net: {frames: 2}, "
    "gram: 0.01, masked: 0.5, adversarial: 0.1, adversarial_kind: non_saturating, adaptive: true, r1: 0.001, "
    "lecam: 0.01}"
)


@pytest.mark.parametrize("stage", [2, pytest.param(0, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_every_loss_at_once(train, clips_dir, tmp_path, stage):
    evaluation = f"evaluation={{clips: {clips_dir}, every: 3, num_clips: 2, metric: perceptual}}"
    run = train(tmp_path / "run", ALL, evaluation, f"zero_stage={stage}", "steps=12", "generator.lr=3.0e-3")
    first = run.lines[0]
    assert {"wavelet", "perceptual", "gram", "masked", "r1", "adaptive_weight", "adversarial"} <= first.keys()
    assert all(np.isfinite(list(line.values())).all() for line in run.lines)
    # Which clips a step sees depends on where the videos lie: one step alone says little.
    assert mean(run.column("l1")[-6:]) < mean(run.column("l1")[:3])
    scored = [line for line in run.lines if "held_out_psnr" in line]
    assert [line["step"] for line in scored] == [3, 6, 9, 12]
    assert {"held_out_ssim", "held_out_perceptual", "held_out_usage_temporal", "held_out_bits_per_pixel"} <= scored[
        0
    ].keys()
    assert list((run.out / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_decoder_trained_on_a_frozen_encoder_leaves_old_tokens_valid(whole, train, demo_videos, tmp_path, stage):
    policy = ClipPolicy(num_frames=9, short_side=48, multiple=8)
    sharding = ShardConfig(policy, runtime=RuntimeConfig(workers=0))
    run_shard([str(demo_videos / "train/carphone.mp4")], tmp_path / "clips", sharding)
    larger = (f"data.clips={tmp_path / 'clips'}", "data.crop=48")
    parts = (
        "model.decoder.lookahead=1",
        "model.decoder.denoise=1",
        "model.decoder.overlap=true",
        "model.decoder.blend=4",
    )
    start = (f"start_from={whole.out}", "train_only=decoder", *parts)
    run = train(tmp_path / "run", *start, *larger, f"zero_stage={stage}")
    before, after = read_checkpoint(whole.out), read_checkpoint(run.out)
    assert after.fingerprints.token == before.fingerprints.token
    assert after.fingerprints.decoder != before.fingerprints.decoder


def test_a_checkpoint_of_another_model_is_rejected(whole, train, tmp_path):
    other = "model.decoder={channels: [16, 32], blocks: [1, 1]}"
    run = train(tmp_path / "run", f"start_from={whole.out}", other, code=2)
    assert "has another model: model.decoder.channels" in run.stderr.strip().splitlines()[-1]
