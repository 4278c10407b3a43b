"""Training masks, and estimates of bits per code."""

from math import log, log2

import numpy as np
import pytest
import torch

from vidvq.codebook import Codebook
from vidvq.formats.token_shard import TokenizerCard
from vidvq.generate.evaluation.ngram import NgramModels
from vidvq.generate.network.block import TransformerConfig
from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.training.likelihood import chosen_positions, position_nats
from vidvq.generate.training.objectives import draw_mask, stratified_masks

SHAPE = (64, 4, 3, 5)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("objective", ["masked", "next"])
@pytest.mark.parametrize("task", ["generate", "predict"])
def test_every_sample_has_hidden_codes(task, objective):
    mask = torch.stack([draw_mask(task, objective, SHAPE[1:], random(seed)) for seed in range(SHAPE[0])])
    counts = mask.flatten(1).sum(1)
    assert counts.min() > 0 and len(counts.unique()) > 10
    assert mask[:, 0].any() == (task == "generate")
    if task == "predict" and objective == "masked":
        given = (~mask.flatten(2).any(2)).int().cumprod(1).sum(1)
        assert set(given.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_an_image_among_videos_has_hidden_codes_too(objective):
    assert draw_mask("predict", objective, (1, *SHAPE[2:]), random()).any()


@pytest.mark.parametrize("objective", ["masked", "next"])
@pytest.mark.parametrize("given", [0, 2])
def test_the_estimate_of_a_constant_loss_is_exact(objective, given):
    total = torch.zeros(SHAPE[0])
    for mask, weights in stratified_masks(SHAPE, given, objective, 3, random()):
        assert not mask[:, :given].any()
        total += (mask * weights).flatten(1).sum(1)
    torch.testing.assert_close(total, torch.full_like(total, float((4 - given) * 15)))


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_a_network_that_knows_nothing_has_the_bits_of_its_codebooks(objective):
    network = VideoTransformer(TransformerConfig(12, 1, 2), (4, 16)).requires_grad_(False)
    for head in network.heads:
        head.outputs[0].weight.zero_()
        head.outputs[0].bias.zero_()
    codes = torch.randint(0, 4, SHAPE, generator=random())
    nats = float(position_nats(network, objective, codes, 0, 2, [f"{at}" for at in range(64)]).sum())
    each = 15 * log(4) + 45 * log(16) if objective == "next" else None
    if each:
        assert nats / 64 == pytest.approx(each, rel=1e-4)
    else:
        # The share of hidden codes in each codebook is random.
        assert nats / 64 == pytest.approx(15 * log(4) + 45 * log(16), rel=0.03)


def test_ngram_models_fit_frequencies_and_contexts():
    card = TokenizerCard("a", "b", (Codebook("joint", 8, 0),), 4, 8, {})
    still = np.tile(np.random.default_rng(0).permutation(8)[None, None], (30, 1, 1))
    models = NgramModels(card, [still])
    bits = models.bits([still])
    # The first code of a clip has no context; later frames all have.
    assert models.bits([still], given=1)["temporal"] < bits["temporal"]
    assert bits["uniform"] == 3
    assert bits["unigram"] == pytest.approx(3, abs=0.01)
    assert bits["bigram"] < 0.5 and bits["temporal"] < 0.5
    rare = NgramModels(card, [np.zeros((30, 1, 8), dtype=int)])
    assert rare.bits([np.zeros((5, 1, 8), dtype=int)])["unigram"] == pytest.approx(-log2(241 / 248))


def test_ngram_models_back_off_by_the_number_of_distinct_followers():
    card = TokenizerCard("a", "b", (Codebook("spatial", 5, 0), Codebook("temporal", 9, 5)), 4, 8, {})
    rng = np.random.default_rng(0)

    def draw():
        return np.concatenate([rng.integers(0, 5, (1, 2, 3)), rng.integers(0, 9, (2, 2, 3))])

    def pairs(codes, back):
        flat = [(at >= 6, int(code)) for at, code in enumerate(codes.ravel())]
        return [((code[0], flat[at - back] if at >= back else None), code) for at, code in enumerate(flat)]

    samples, scored = [draw() for _ in range(4)], draw()
    bits = NgramModels(card, samples).bits([scored], given=1)
    for name, back in {"bigram": 1, "temporal": 6}.items():
        seen = [pair for codes in samples for pair in pairs(codes, back)]
        total = 0.0
        for context, code in pairs(scored, back)[6:]:
            followers = [after for before, after in seen if before == context]
            unigram = (sum(after == code for _, after in seen) + 1) / (4 * 12 + 9)
            weight = max(len(set(followers)), 1)
            total -= log2((followers.count(code) + weight * unigram) / (len(followers) + weight))
        assert bits[name] == pytest.approx(total / 12)


def test_positions_are_in_the_order_of_the_losses():
    torch.manual_seed(0)
    network = VideoTransformer(TransformerConfig(24, 1, 2), (11, 13)).eval()
    codes = torch.randint(0, 11, (2, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(codes.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    with torch.no_grad():
        hidden = network.hidden(network.embed(codes, mask))
        nats = network.nll(hidden, codes, mask)
        for value, *at in zip(nats, *chosen_positions(mask, network), strict=True):
            single = torch.zeros_like(mask)
            single[tuple(at)] = True
            assert torch.isclose(network.nll(hidden, codes, single)[0], value)


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_the_bits_of_a_sample_do_not_depend_on_its_batch(objective):
    torch.manual_seed(0)
    network = VideoTransformer(TransformerConfig(24, 1, 2), (11, 13)).eval()
    codes, seeds = torch.randint(0, 11, (4, 3, 2, 2)), ["a", "b", "c", "d"]
    whole = position_nats(network, objective, codes, 0, 2, seeds)
    parts = [position_nats(network, objective, codes[at : at + 2], 0, 2, seeds[at : at + 2]) for at in (0, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
