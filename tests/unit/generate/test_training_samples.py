"""Training samples, and the distance of a sample to the nearest of them."""

import numpy as np
import pytest

from tests.helpers.generators import make_card
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.evaluation.training_samples import nearest_distances, read_training_samples, training_tokens


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 6, 12]), (13, range(13)), (99, range(13))])
def test_they_are_spread_evenly_over_the_training_tokens(tmp_path, tokens_dir, count, expected):
    card, locations = make_card(read_tokenizer_card(tokens_dir)), index_tokens(tokens_dir)
    (tmp_path / "config.yaml").write_text(f"data: {{tokens: [{tokens_dir}]}}")
    found = read_training_samples(tmp_path, card, count)
    assert len(locations) == 13 and len(found) == len(expected)
    assert all(
        np.array_equal(codes, locations[at].read(card.tokenizer)[0]) for codes, at in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("content", ["{}", "data:", "data: folder", "data: {tokens: 3}", "data: {tokens: [3]}"])
def test_the_config_of_another_program_names_no_training_tokens(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    assert training_tokens(tmp_path) == []


def test_samples_are_compared_with_the_nearest_one_of_their_shape():
    codes = np.arange(8).reshape(2, 2, 2)
    half = codes.copy()
    half[1] = 0
    far = np.full((2, 2, 2), 9)
    longer = np.concatenate([codes, codes])
    assert nearest_distances([codes, longer], [far, half]) == [0.5, 1.0]
    assert nearest_distances([codes, half], [far, codes]) == [0.0, 0.5]
    assert nearest_distances([codes], []) == [1.0]
