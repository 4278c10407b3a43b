"""Construction of a trainer changes neither files nor random states."""

import subprocess
import sys

import pytest

BUILD = """
import sys
from pathlib import Path
import torch
from vidvq import config as settings
from vidvq.train import TrainConfig
from vidvq.training.distributed import init_distributed, shutdown_distributed
from vidvq.train.trainer import Trainer
config = settings.load(TrainConfig, settings.find_config("demo"), sys.argv[1:])
context = init_distributed(60)
before = torch.get_rng_state()
trainer = Trainer(config, context)
assert torch.equal(torch.get_rng_state(), before)
assert trainer.progress.step == 0
shutdown_distributed()
"""


@pytest.fixture
def damaged_run(tmp_path):
    """A run that a trainer would clean up, or refuse to read."""
    out = tmp_path / "run"
    for name in ("checkpoints/.training-00000006/state.json", "checkpoints/step-00000003/training/state.json"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("damaged")
    return out


def test_construction_has_no_side_effects(settings, damaged_run, snapshot):
    before = snapshot(damaged_run)
    arguments = ["data.clips=/nowhere", f"out={damaged_run}", *settings]
    done = subprocess.run([sys.executable, "-c", BUILD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert snapshot(damaged_run) == before
