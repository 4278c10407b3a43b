"""Which config a run directory belongs to."""

import pytest

from vidvq import config as settings
from vidvq.data import DataConfig
from vidvq.errors import UsageError
from vidvq.train.config import TrainConfig
from vidvq.training.run_directory import record_config


def config(steps: int) -> TrainConfig:
    return TrainConfig(data=DataConfig(clips=("clips",)), steps=steps)


def test_a_run_without_checkpoints_takes_another_config(tmp_path):
    for steps in (7, 8):
        record_config(tmp_path, config(steps), set())
    assert settings.load(TrainConfig, tmp_path / "config.yaml", []).steps == 8
    # Also a checkpoint that lacks files.
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    with pytest.raises(UsageError, match="belongs to a run with another config: steps was 8, now 9"):
        record_config(tmp_path, config(9), set())
    record_config(tmp_path, config(9), {"steps"})
