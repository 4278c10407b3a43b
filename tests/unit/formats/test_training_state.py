"""The state of a training run is under digests, down to its counters."""

import json
from pathlib import Path

import pytest
import torch

from vidvq.errors import UsageError
from vidvq.formats.training_state import is_of_another_format, read_state_file, training_damage
from vidvq.storage import add_digest
from vidvq.training.training_state import Progress, TrainingState, read_training_state, write_training_state


@pytest.fixture
def folder(tmp_path) -> Path:
    state = TrainingState(Progress(step=7, losses=[0.5], best=(1.5, 3)), {"average": {"w": torch.ones(3)}})
    write_training_state(tmp_path / "training", state)
    return tmp_path / "training"


def edit(folder: Path, **fields: object) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_state_is_read_as_it_was_written(folder):
    assert training_damage(folder) is None
    found = read_training_state(folder)
    assert found.progress == Progress(step=7, losses=[0.5], best=(1.5, 3))
    assert found.tensors["average"]["w"].tolist() == [1, 1, 1]


def test_an_edited_counter_is_named(folder):
    edit(folder, step=8)
    assert training_damage(folder) == "has a damaged state.json"
    with pytest.raises(UsageError, match="was changed after it was written") as error:
        read_training_state(folder)
    assert "\n" not in str(error.value)


def test_a_changed_tensor_is_named(folder):
    path = folder / "average.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert training_damage(folder) == "has a torn average.safetensors"


@pytest.mark.parametrize("fields", [{"step": "7"}, {"batch": -1}, {"sha256": {"../x": "0" * 64}}, {"more": 1}])
def test_a_forged_state_is_refused_in_one_line(folder, fields):
    path = folder / "state.json"
    state = json.loads(path.read_text()) | fields
    del state["digest"]
    path.write_text(json.dumps(add_digest(state)))
    assert training_damage(folder) == "has a damaged state.json"
    with pytest.raises(UsageError) as error:
        read_state_file(folder)
    assert "\n" not in str(error.value)


def test_a_state_of_an_older_version_has_no_digest_and_one_of_another_format_is_left_to_its_reader(folder):
    path = folder / "state.json"
    state = json.loads(path.read_text())
    del state["digest"]
    path.write_text(json.dumps(state))
    assert training_damage(folder) is None and read_training_state(folder).progress.step == 7
    assert not is_of_another_format(folder)
    path.write_text(json.dumps(state | {"format": "vidvq.training/9"}))
    assert is_of_another_format(folder) and training_damage(folder) is not None
    with pytest.raises(UsageError, match="is not of format"):
        read_training_state(folder)
