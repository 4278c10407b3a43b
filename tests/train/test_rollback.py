"""A rollback is equivalent to resuming from the last checkpoint."""

import json
import shutil

import pytest

from vidvq.formats.checkpoint import read_checkpoint

# The batch of the step is half learned: both engines hold gradients of its first micro-batch.
ROLL_BACK = """
from vidvq.training.guard import RollbackNeeded
from vidvq.train.trainer import Trainer
forward_backward, raised = Trainer.forward_backward, []
def roll_back_once(self, video, micro_step):
    if (self.progress.step, micro_step) == (STEP, 1) and not raised:
        raised.append(1)
        raise RollbackNeeded("a test")
    return forward_backward(self, video, micro_step)
Trainer.forward_backward = roll_back_once
"""
START_AT = """
from vidvq.train.trainer import Trainer
load_state = Trainer.load_state
def load_and_skip(self, state):
    load_state(self, state)
    self.progress.batch = BATCH
Trainer.load_state = load_and_skip
"""


@pytest.mark.parametrize(
    "settings",
    [
        ("zero_stage=3",),
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in [
                ("zero_stage=0",),
                ("zero_stage=1",),
                ("zero_stage=2",),
                ("zero_stage=0", "precision=bf16"),
                ("zero_stage=2", "precision=bf16", "generator.offload=true"),
                ("zero_stage=3", "discriminator_optimizer.offload=true"),
            ]
        ),
    ],
)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rollback_is_a_resume_in_the_same_process(train, tmp_path, settings, ranks):
    settings = (*settings, f"data.micro_batch_size={2 // ranks}")
    rolled_back = train(tmp_path / "rolled", *settings, ranks=ranks, patch=ROLL_BACK.replace("STEP", "4"))
    assert "step 5: a test; rolled back to step 3, continuing with batch 5" in rolled_back.stderr
    out = shutil.copytree(rolled_back.out, tmp_path / "resumed")
    shutil.rmtree(out / "checkpoints/step-00000006")
    path = out / "checkpoints/step-00000003/training/state.json"
    state = json.loads(path.read_text())
    # As an older version wrote it: a digest would have to fit.
    del state["digest"]
    path.write_text(json.dumps(state | {"batch": 5, "rollbacks": 1}))
    resumed = train(out, *settings, ranks=ranks)
    assert "resuming from" in resumed.stderr
    assert rolled_back.lines == resumed.lines
    assert read_checkpoint(rolled_back.out).fingerprints == read_checkpoint(resumed.out).fingerprints


@pytest.mark.slow
def test_without_a_checkpoint_a_rollback_restarts_the_run(train, tmp_path):
    settings = ("zero_stage=2", "data.micro_batch_size=2")
    rolled_back = train(tmp_path / "rolled", *settings, patch=ROLL_BACK.replace("STEP", "2"))
    assert "step 3: a test; rolled back to step 0, continuing with batch 3" in rolled_back.stderr
    started = train(tmp_path / "started", *settings, patch=START_AT.replace("BATCH", "3"))
    assert rolled_back.lines == started.lines
    assert read_checkpoint(rolled_back.out).fingerprints == read_checkpoint(started.out).fingerprints
