"""Which config a run directory belongs to."""

from dataclasses import replace

import pytest
import torch

from vidvq import config as settings
from vidvq.data import DataConfig
from vidvq.errors import UsageError
from vidvq.train.config import TrainConfig
from vidvq.training.distributed import DistributedContext
from vidvq.training.run_directory import locked_run_directory, record_config


def config(steps: int) -> TrainConfig:
    return TrainConfig(data=DataConfig(clips=("clips",)), steps=steps)


def test_a_run_directory_may_be_moved(tmp_path):
    record_config(tmp_path, config(7), set())
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    record_config(tmp_path, replace(config(7), out=str(tmp_path)), set())
    assert settings.load(TrainConfig, tmp_path / "config.yaml", []).out == str(tmp_path)


def test_a_run_without_checkpoints_takes_another_config(tmp_path):
    for steps in (7, 8):
        record_config(tmp_path, config(steps), set())
    assert settings.load(TrainConfig, tmp_path / "config.yaml", []).steps == 8
    # Also a checkpoint that lacks files.
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    with pytest.raises(UsageError, match="belongs to a run with another config: steps was 8, now 9"):
        record_config(tmp_path, config(9), set())
    record_config(tmp_path, config(9), {"steps"})


@pytest.mark.parametrize("owner", ["export", "decode", "train", "generate train"])
def test_a_run_in_the_output_directory_of_another_command_is_refused(owner, tmp_path):
    step = tmp_path / "checkpoints/step-00000004"
    if owner.endswith("train"):
        step.mkdir(parents=True)
        (step / "config.json").write_text('{"format": "vidvq.generator/1"}' if owner == "generate train" else "{}")
    else:
        (tmp_path / f"{owner}.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    command = "vidvq generate train" if owner == "train" else "vidvq train"
    with (
        pytest.raises(UsageError, match=f"is the output directory of vidvq {owner}; give another out="),
        locked_run_directory(tmp_path, command, DistributedContext(0, 1, torch.device("cpu"))),
    ):
        pass
    assert sorted(tmp_path.iterdir()) == before
