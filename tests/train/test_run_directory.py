"""Which config a run directory belongs to."""

from dataclasses import replace

import pytest

from vidvq import config as settings
from vidvq.data import DataConfig
from vidvq.errors import UsageError
from vidvq.train.config import TrainConfig
from vidvq.training.run_directory import record_config


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
