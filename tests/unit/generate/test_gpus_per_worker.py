"""GPUs that the workers of `vidvq generate` ask for."""

import pytest
import torch

from vidvq.generate.stages import token_stage
from vidvq.runtime import RuntimeConfig


@pytest.mark.parametrize(
    ("in_cluster", "here", "expected"),
    [(4.0, False, 0.5), (0.0, True, 0), (None, True, 0.5), (None, False, 0)],
)
def test_they_are_those_of_the_cluster_not_of_the_driver(monkeypatch, in_cluster, here, expected):
    monkeypatch.setattr(token_stage, "count_gpus", lambda runtime: in_cluster)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    assert token_stage.gpus_per_worker(RuntimeConfig(gpus_per_worker=0.5)) == expected
