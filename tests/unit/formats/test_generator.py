"""Generators on disk."""

import json

import pytest

from tests.helpers.generators import make_card, write_random
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import digest_tensors
from vidvq.formats.generator import read_generator
from vidvq.formats.token_shard import read_tokenizer_card


@pytest.fixture
def written(tmp_path, tokens_dir):
    card = make_card(read_tokenizer_card(tokens_dir), labels=("cat", "dog"), label="kind")
    return card, write_random(tmp_path / "generator", card)


def test_what_is_written_is_read(written):
    card, folder = written
    generator = read_generator(folder)
    assert generator.card == card and generator.step == 1 and generator.card.limits == (3, 4, 5)
    assert json.loads((folder / "fingerprint").read_text())["generator"] == generator.fingerprint


def test_a_generator_without_fields_that_came_later_is_read(written):
    card, folder = written
    config = json.loads((folder / "config.json").read_text())
    del config["generator"]["action_scale"], config["generator"]["label"]
    prints = {"generator": digest_tensors(config["generator"], read_generator(folder).tensors)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "fingerprint").write_text(json.dumps(prints))
    assert read_generator(folder).card.labels == card.labels


def test_another_config_than_the_fingerprint_covers_is_refused(written):
    _, folder = written
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"cat"', '"cow"'))
    with pytest.raises(UsageError, match="do not match the fingerprint"):
        read_generator(folder)
