"""Parsing of actions, and their gathering by latent frame."""

import numpy as np
import pytest

from tests.helpers.generators import make_card
from vidvq.errors import UsageError
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate import conditions
from vidvq.generate.conditions import latent_actions, parse_actions, read_actions


def test_a_latent_frame_has_the_actions_of_its_frames(tokens_dir):
    card = make_card(read_tokenizer_card(tokens_dir), actions="move", action_mean=(1.0,), action_scale=(2.0,))
    rows = np.arange(1, 8, dtype=np.float32)[:, None]
    # Latent frame 0 is frame 0; 1 is frames 1 to 4; 2 is frames 5 to 8, of which 7 and 8 are missing.
    found = latent_actions(rows, np.array([0, 1, 2]), card) * 2 + 1
    assert found.tolist() == [[1, 1, 1, 1], [2, 3, 4, 5], [6, 7, 7, 7]]
    assert np.array_equal(latent_actions(rows, np.array([0, 2]), card) * 2 + 1, found[[0, 2]])


@pytest.mark.parametrize(
    "value", ["[1, [2]]", "up", "[]", '["a"]', "[[1, NaN]]", "[[[1]]]", "[" * 100_000, f"[1{'0' * 400}]"]
)
def test_malformed_actions_are_refused(value):
    with pytest.raises(UsageError, match="column move of a"):
        parse_actions(value, "column move of a")


def test_actions_are_numbers_or_rows_of_numbers():
    assert parse_actions("[0, 1]", "").tolist() == [[0], [1]] and parse_actions([[1, 2]], "").tolist() == [[1, 2]]


def test_a_constant_component_has_a_scale_of_1(monkeypatch):
    # 0.1 has no exact mean in fp32.
    rows = [[0.1, step % 2] for step in range(100)]
    monkeypatch.setattr(conditions, "read_column", lambda folders, name, keys: dict.fromkeys(keys, rows))
    found = read_actions(["clips"], "move", "abcdefghij")
    assert found.scale == (1, 0.5) and found.mean == pytest.approx((0.1, 0.5), rel=1e-7)
