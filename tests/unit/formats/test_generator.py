"""Generators on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.generators import make_card, write_random
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import digest_tensors, read_tensors
from vidvq.formats.generator import read_generator
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.network.build import load_network


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": []}, "shapes"),
        ({"shapes": [[3, -4, 5]]}, "shapes.0.1=-4"),
        ({"shapes": [[3, 1 << 40, 5]]}, "shapes.0.1"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["fly"]}, "tasks.0='fly'"),
        ({"fps": -3.0}, "fps=-3.0"),
        ({"text_width": -4}, "text_width=-4"),
        ({"action_mean": [0.0], "action_scale": [0.0]}, r"action_scale=\[0.0\] must have a number other than 0"),
        ({"action_mean": [0.0]}, r"action_scale=\[\] must have a number other than 0"),
        ({"shapes": [[1 << 20, 1 << 20, 1]]}, "a shape has more than 4294967296 latents"),
        ({"tokenizer": {"temporal_factor": 0}}, "temporal_factor=0"),
        ({"tokenizer": {"codebooks": [{"name": "joint", "size": -5, "offset": 0}]}}, r"codebooks have \[-5\] codes"),
        ({"tokenizer": {"codebooks": [{"name": "odd", "size": 5, "offset": 0}]}}, "codebooks are odd"),
        ({"tokenizer": {"raster_order": "w h t"}}, "raster_order='w h t'"),
        ({"step": [1]}, r"step=\[1\] must be an integer"),
    ],
    ids=str,
)
def test_a_card_with_impossible_values_is_refused_even_if_its_fingerprint_fits(written, change, message):
    _, folder = written
    config = json.loads((folder / "config.json").read_text())
    config["step"] = change.pop("step", config["step"])
    config["generator"]["tokenizer"] |= change.pop("tokenizer", {})
    config["generator"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    prints = {"generator": digest_tensors(config["generator"], read_tensors(folder / "model.safetensors"))}
    (folder / "fingerprint").write_text(json.dumps(prints))
    with pytest.raises(UsageError, match=message):
        read_generator(folder)


@pytest.mark.parametrize("model", [{"width": 24 * 10**6}, {"copy_radius": 10**6}, {"depth": 10**9}], ids=str)
def test_a_network_of_another_size_than_the_weights_is_refused_without_allocating_it(written, model):
    generator = read_generator(written[1])
    card = replace(generator.card, model=generator.card.model | model)
    with pytest.raises(UsageError, match="do not fit the network|depth=1000000000 must be at most"):
        load_network(replace(generator, card=card))


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32("inf"), np.float64(1), np.uint8(1)], ids=repr)
def test_weights_that_are_not_finite_fp32_numbers_are_refused(written, value):
    generator = read_generator(written[1])
    tensors = generator.tensors | {"norm.weight": np.full_like(generator.tensors["norm.weight"], value, value.dtype)}
    with pytest.raises(UsageError, match=r"norm.weight are not finite fp32 numbers"):
        load_network(replace(generator, tensors=tensors))
