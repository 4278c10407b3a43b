"""The example trains: on token shards and on their megatron export alike."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/next_token.py"


def test_the_loss_goes_down_on_both(tmp_path, tokens_dir, vidvq):
    spec = importlib.util.spec_from_file_location("next_token", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert vidvq("export", tokens_dir, "--to", "megatron", "--out", tmp_path / "megatron").code == 0
    shards, vocabulary = example.read_token_shards(tokens_dir)
    exported, same = example.read_megatron(tmp_path / "megatron")
    assert [clip.tolist() for clip in shards] == [clip.tolist() for clip in exported] and vocabulary == same
    losses, held_out = example.train(exported, vocabulary, steps=30, context=32)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    assert held_out < losses[0]
    few, held_out = example.train(exported[:3], vocabulary, steps=1, context=32)
    assert len(few) == 1 and np.isfinite(held_out)
    untrained = [example.train(exported, vocabulary, steps=0, batch=batch, context=8)[1] for batch in (1, 4)]
    assert untrained[0] == pytest.approx(untrained[1], rel=1e-6)
    assert example.entropy(np.array([3, 3, 7, 7])) == pytest.approx(np.log(2))
