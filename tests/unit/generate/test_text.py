"""Text conditions: encoders, cross-attention, and training on samples that a text determines."""

import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.generators import make_card
from tests.helpers.text_encoders import write_clip, write_text_encoder
from vidvq.data.tokens import TokenBatch
from vidvq.errors import UsageError
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.network.block import KVCache
from vidvq.generate.network.build import build_network
from vidvq.generate.requests import SamplingConfig
from vidvq.generate.sampling.codes import Condition, SamplePrompt, sample_codes
from vidvq.generate.stages.guide import Clip
from vidvq.generate.text import TextEncoder, open_text_encoder, pad_texts
from vidvq.generate.training.examples import Examples, seeded_rng
from vidvq.generate.training.trainer import compute_loss, draw_hidden
from vidvq.training.random_state import sample_generators

WORDS = ("red", "green", "a blue clip")


@pytest.fixture(scope="module", params=["t5", "clip"])
def encoder(request, tmp_path_factory):
    return TextEncoder(str(write_text_encoder(tmp_path_factory.mktemp(request.param), request.param)))


@pytest.fixture(scope="module")
def card(tokens_dir, encoder):
    fields = {"text": "caption", "text_encoder": "t5", "text_width": encoder.width, "text_probe": encoder.probe}
    return make_card(read_tokenizer_card(tokens_dir), tasks=("generate",), shapes=((2, 2, 2),), **fields)


def batch(encoder, with_text):
    """Samples whose codes are the index of their word."""
    codes = torch.arange(3)[:, None, None, None].expand(3, 2, 2, 2)
    text = pad_texts([encoder.encode(word) if with_text else None for word in WORDS], encoder.width)
    tokens = TokenBatch(list(WORDS), codes, codes, torch.arange(2).expand(3, 2))
    return Examples(tokens, "generate", None, None, None, text)


def train(card, examples, steps=40):
    network = build_network(card)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-2)
    losses = []
    for step in range(steps):
        sources = sample_generators(0, step, 0, len(WORDS), torch.device("cpu"))
        mask, kept = draw_hidden(examples, card.objective, 0.1, sources)
        loss = compute_loss(network, examples, card.objective, mask, kept)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network.eval().requires_grad_(False), sum(losses[-10:]) / 10


def test_samples_that_a_text_determines_are_learned(card, encoder):
    card = replace(card, objective="masked" if encoder.kind == "t5" else "next")
    network, loss = train(card, batch(encoder, True))
    assert loss < 0.6 * train(card, batch(encoder, False))[1]
    sampling = SamplingConfig(steps=2, temperature=0, guidance=1.5)
    for index, word in enumerate(WORDS):
        text = Condition(text=encoder.encode(word))
        (drawn,) = sample_codes(network, card, (2, 2, 2), [SamplePrompt(seeded_rng(word), condition=text)], sampling)
        assert (drawn == index).all(), word


def test_dropped_and_absent_texts_are_equal_and_padding_does_not_matter(card, encoder):
    network = build_network(card).eval().requires_grad_(False)
    states, mask = pad_texts([encoder.encode("red"), encoder.encode("a blue clip"), None], card.text_width)
    codes = torch.zeros(3, 2, 2, 2, dtype=torch.int64)
    x = network.embed(codes, None) * 40

    def hidden(text=None, text_mask=None, kept=None):
        return network.hidden(x, text=network.context(3, text, text_mask, kept))

    given = hidden(states, mask)
    assert not torch.allclose(given[0], given[1]) and torch.allclose(given[2], hidden()[2], atol=1e-6)
    dropped = hidden(states, mask, torch.tensor([False, True, True]))
    assert torch.allclose(dropped[0], hidden()[0], atol=1e-6) and torch.equal(dropped[1], given[1])
    alone = network.context(1, states[:1, :1], mask[:1, :1])
    assert torch.allclose(network.hidden(x[:1], text=alone), given[:1], atol=1e-6)
    cache = KVCache()
    network.forward_cached(x[:, :1], cache, append=True, text=network.context(3, states, mask))
    cached = network.forward_cached(x[:, 1:], cache, append=False, text=network.context(3, states, mask))
    assert torch.allclose(cached, network.hidden(x, x, network.context(3, states, mask))[:, 1:], atol=1e-5)


def test_a_text_has_the_same_states_in_every_process(encoder):
    copied = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(copied.encode("a red clip"), encoder.encode("a red clip"))
    assert not torch.equal(encoder.encode("a red clip"), encoder.encode("a blue clip"))


def test_a_missing_or_other_encoder_is_one_line(tmp_path, card, encoder, monkeypatch):
    other = str(write_text_encoder(tmp_path / "other", "t5", seed=5))
    with pytest.raises(UsageError, match="differs from the one that this generator was trained with"):
        open_text_encoder(card, other)
    with pytest.raises(UsageError, match="this generator was trained without texts"):
        open_text_encoder(replace(card, text=""))
    (tmp_path / "void").mkdir()
    with pytest.raises(UsageError, match="cannot be loaded by transformers"):
        TextEncoder(str(tmp_path / "void"))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match="texts need the library transformers"):
        TextEncoder(other)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_of_transformers_is_one_line(tmp_path, file):
    encoder, clip = write_text_encoder(tmp_path / "encoder"), write_clip(tmp_path / "clip")
    for folder in (encoder, clip):
        data = (folder / file).read_bytes()
        changed = {"tokenizer.json": b"{}", "config.json": data.replace(b'_size": 16', b'_size": 32')}
        (folder / file).write_bytes(changed.get(file, data[:-9]).replace(b'"d_ff": 16', b'"d_ff": 32'))
    with pytest.raises(UsageError, match="text_encoder=.*encoder cannot be loaded by transformers: ."):
        TextEncoder(str(encoder))
    with pytest.raises(UsageError, match="--clip .*clip cannot be loaded by transformers: ."):
        Clip(clip, "red", torch.device("cpu"))


def test_a_pickled_encoder_is_refused(tmp_path):
    folder = write_text_encoder(tmp_path / "encoder")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="cannot be loaded by transformers: .*safetensors"):
        TextEncoder(str(folder))
