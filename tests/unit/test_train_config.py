"""Settings of `vidvq train` that do not match the model are rejected early."""

import numpy as np
import pytest
import torch

from vidvq.config import find_config, load
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import BUNDLED, read_checkpoint, write_checkpoint
from vidvq.generate.config import GenerateTrainConfig
from vidvq.model import Discriminator
from vidvq.submit import Job
from vidvq.train import TrainConfig
from vidvq.train.initialization import read_initial_checkpoint
from vidvq.training.engine import deepspeed_config

HALVES = [
    "model.patch_size=2",
    "model.encoder={channels: [8], blocks: [1]}",
    "model.decoder={channels: [8], blocks: [1]}",
    "discriminator={channels: 4, layers: 1}",
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.num_frames=10"], r"data\.num_frames=10 must be 1 \+ a multiple of .*=4; nearest 9 or 13"),
        (["data.num_frames=2"], r"data\.num_frames=2 must .* nearest 1 or 5"),
        (["data.num_frames=9", "model.temporal_factor=2"], None),
        (["data.num_frames=1"], None),
        (["data.crop=36"], r"data\.crop=36 must be a multiple of 8, the pixels per latent"),
        (
            ["data.buckets=[{num_frames: 9, height: 32, width: 64}, {num_frames: 4, height: 32, width: 32}]"],
            r"data\.buckets\.1\.num_frames=4 must be 1 \+ a multiple of .*=4; nearest 1 or 5",
        ),
        (
            ["data.buckets=[{num_frames: 9, height: 32, width: 60}]"],
            r"data\.buckets\.0\.height=32 width=60 must be a multiple of 8",
        ),
        (["data.crop=10", *HALVES, "loss.wavelet=1"], r"data\.crop=10 must be a multiple of 4, for loss\.wavelet"),
        (["data.crop=10", *HALVES], None),
        (["data.crop=64", "discriminator.layers=6"], r"data\.crop=64 must be at least 128, as discriminator\.layers=6"),
        (["data.crop=64", "discriminator.layers=5"], None),
        (["data.crop=64", "discriminator.layers=6", "loss.adversarial=0"], None),
        # What num_frames and crop say is not used where there are buckets.
        (["data.num_frames=10", "data.buckets=[{num_frames: 9, height: 32, width: 32}]"], None),
    ],
)
def test_batch_shapes_must_be_whole_groups_and_latents(overrides, message):
    settings = ["data.clips=clips", "model.patch_size=4", *overrides]
    if message is None:
        config = load(TrainConfig, None, settings)
        shape = config.data.shapes[0]
        frames = torch.zeros(1, 3, shape.num_frames, shape.height, shape.width)
        assert not config.adversarial or Discriminator(config.discriminator)(frames).numel() > 0
        return
    with pytest.raises(UsageError, match=message):
        load(TrainConfig, None, settings)


# NumPy and torch would raise an error of their own, in the middle of a run.
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1: must be an integer, 0 or more"),
        (f"seed={1 << 64}", "seed=.*below"),
        ("{0}.betas=[1.5, 0.9]", r"betas\.0=1\.5: must be a number, 0 or more, below 1"),
        ("{0}.betas=[0.9, -0.1]", r"betas\.1=-0\.1: must be a number, 0 or more, below 1"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "data", "optimizer"),
    [(TrainConfig, "data.clips=clips", "generator"), (GenerateTrainConfig, "data.tokens=tokens", "optimizer")],
)
def test_seeds_and_decays_that_no_library_takes_are_refused(kind, data, optimizer, override, message):
    with pytest.raises(UsageError, match=message):
        load(kind, None, [data, override.format(optimizer)])


def test_training_starts_from_the_bundled_tokenizer_by_name(tmp_path, monkeypatch, vidvq):
    monkeypatch.chdir(tmp_path)
    config = load(TrainConfig, find_config("bundled-decoder"), ["start_from=bundled", "data.clips=clips"])
    checkpoint = read_initial_checkpoint(config, None)
    assert checkpoint is not None and checkpoint.fingerprints == read_checkpoint(BUNDLED).fingerprints
    jobs: list[Job] = []
    monkeypatch.setattr("vidvq.cli.submit._submit", lambda job, options: jobs.append(job) or 0)
    vidvq("submit", "train", "bundled-decoder", "start_from=bundled", "data.clips=clips")
    assert (jobs[0].settings["start_from"], jobs[0].settings["data"]["clips"]) == ("bundled", [str(tmp_path / "clips")])


@pytest.mark.parametrize(("model", "message"), [({}, "has another model: model."), ({"x": 1}, r"checkpoint: .*x")])
def test_a_checkpoint_whose_config_is_not_that_of_a_tokenizer_is_one_line(tmp_path, model, message):
    write_checkpoint(tmp_path / "checkpoint", model, {}, {"encoder.weight": np.ones(2, np.float32)}, step=1)
    config = load(TrainConfig, find_config("base"), [f"start_from={tmp_path / 'checkpoint'}", "data.clips=clips"])
    with pytest.raises(UsageError, match=message):
        read_initial_checkpoint(config, None)


@pytest.mark.parametrize(
    ("name", "config_type", "ranks"),
    [
        ("base", TrainConfig, 8),
        ("large", TrainConfig, 8),
        ("vqgan-base-128", TrainConfig, 64),
        ("vqgan-base-256-decoder", TrainConfig, 64),
        ("generate-base", GenerateTrainConfig, 8),
    ],
)
def test_packaged_configs_split_their_batches_over_the_gpus_of_their_commands(name, config_type, ranks):
    data = load(config_type, find_config(name), []).data
    assert data.micro_batch(ranks) * data.accumulation(ranks) * ranks == data.batch_size


@pytest.mark.parametrize("stage", [0, 2])
def test_gradients_of_no_module_are_reduced_in_half_precision(stage):
    config = load(TrainConfig, find_config("vqgan-base-128"), [f"zero_stage={stage}"])
    autocast = deepspeed_config(config, config.generator, 64)["torch_autocast"]
    assert autocast == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
