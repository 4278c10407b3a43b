"""What the generator sees at each step of a rollout."""

import numpy as np
import pytest

from tests.helpers.generators import make_card
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.requests import SamplingConfig
from vidvq.generate.sampling import rollout
from vidvq.generate.sampling.rollout import Rollout
from vidvq.pretrained import load_tokenizer


@pytest.fixture
def play(monkeypatch, tokens_dir, checkpoint_dir):
    """Return a function that plays the actions 1 to 4, and returns the prompts; latent frame n consists of code n."""
    fields = {"actions": "move", "action_mean": (0.0,), "action_scale": (1.0,)}
    card, (tokenizer, _) = make_card(read_tokenizer_card(tokens_dir), **fields), load_tokenizer(checkpoint_dir)

    def run(seed):
        prompts, start = [], np.zeros((1, 4, 5), dtype=np.int64)

        def sample(network, card, shape, given, *more):
            prompts.extend(given)
            assert shape[0] == len(given[0].given) + 1
            return [np.full(shape, len(prompts))]

        monkeypatch.setattr(rollout, "sample_codes", sample)
        played = Rollout(None, card, tokenizer, start, SamplingConfig(), seed, (32, 40))
        frames = [played.start(), *(played.step([action]) for action in (1, 2, 3, 4))]
        assert [len(each) for each in frames] == [1, 4, 4, 4, 4]
        return prompts

    return run


def test_the_context_is_the_first_latent_frame_and_the_newest_with_their_actions(play):
    prompts = play("a")
    assert [prompt.given[:, 0, 0].tolist() for prompt in prompts] == [[0], [0, 1], [0, 2], [0, 3]]
    actions = [prompt.condition.actions for prompt in prompts]
    assert all(each[0].isnan().all() and (each[1:] == each[1:, :1]).all() for each in actions)
    assert [each[1:, 0].tolist() for each in actions] == [[1], [1, 2], [2, 3], [3, 4]]


def test_each_step_of_a_seed_has_its_own_randomness(play):
    seeds = [[prompt.rng.initial_seed() for prompt in play(seed)] for seed in ("a", "a", "b")]
    assert seeds[0] == seeds[1] and len({*seeds[0], *seeds[2]}) == 8
