"""Sampling: reveal orders, given codes, conditions, sliding contexts."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.helpers.generators import make_card
from vidvq.errors import UsageError
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.blanking import BlankedVideo
from vidvq.generate.network.build import build_network
from vidvq.generate.requests import SamplingConfig
from vidvq.generate.sampling.codes import Condition, SamplePrompt, _invert, _Window, sample_clips, sample_codes
from vidvq.generate.sampling.reveal_order import reveal_counts, reveal_order
from vidvq.generate.training.examples import seeded_rng
from vidvq.model.launches import LaunchCounter

SHAPE = (3, 4, 5)


@pytest.fixture(scope="module")
def card(tokens_dir):
    return make_card(read_tokenizer_card(tokens_dir), labels=("cat", "dog"))


@pytest.fixture(scope="module")
def network(card):
    made = build_network(card).eval().requires_grad_(False)
    for weight in made.parameters():
        weight.mul_(4)
    return made


def draw(network, card, shape=SHAPE, given=None, condition=None, seed="a", **settings):
    config = SamplingConfig(**({"steps": 4} | settings))
    prompt = SamplePrompt(seeded_rng(seed), given, condition or Condition())
    return sample_codes(network, card, shape, [prompt], config)[0]


@pytest.mark.parametrize("order", ["halton", "random"])
def test_an_order_is_a_permutation(order):
    drawn = [reveal_order((3, 4, 5), order, seeded_rng(str(seed))).tolist() for seed in range(3)]
    assert all(sorted(each) == list(range(60)) for each in drawn) and drawn[0] != drawn[1]


def test_a_halton_order_spreads_its_first_codes_over_the_grid():
    def emptiest(order):
        """Codes in the emptiest eighth of the grid among the first quarter."""
        spread = []
        for seed in range(20):
            first = reveal_order((4, 8, 8), order, seeded_rng(str(seed)))[:64].numpy()
            t, h, w = np.unravel_index(first, (4, 8, 8))
            spread.append(np.bincount(4 * (t // 2) + 2 * (h // 4) + w // 4, minlength=8).min())
        return np.mean(spread)

    assert emptiest("halton") > 5.5 > 5 > emptiest("random")


def test_each_step_reveals_a_code_and_the_last_one_all():
    for count in (1, 5, 400):
        for steps in (1, 4, 12, 10**12):
            ends = reveal_counts(count, steps)
            assert ends[-1] == count and sorted(set(ends)) == ends and len(ends) <= steps


@pytest.mark.parametrize("objective", ["masked", "next"])
@pytest.mark.parametrize("order", ["halton", "random", "confidence"])
def test_samples_depend_on_the_seed_alone_and_keep_the_given_codes(network, card, objective, order):
    card = replace(card, objective=objective)
    first = draw(network, card, order=order)
    assert np.array_equal(first, draw(network, card, order=order))
    assert not np.array_equal(first, draw(network, card, order=order, seed="b"))
    assert first[0].max() < 32 <= first[1:].max() < 64
    given = draw(network, card, order=order, given=first[:2], seed="b")
    assert np.array_equal(given[:2], first[:2]) and not np.array_equal(given[2], first[2])


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_a_longer_clip_slides_its_context(network, card, objective):
    card = replace(card, objective=objective)
    start = draw(network, card)
    longer = draw(network, card, (8, 4, 5), start)
    assert longer.shape == (8, 4, 5) and np.array_equal(longer[:3], start)
    assert len({frame.tobytes() for frame in longer}) == 8


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_the_actions_of_a_longer_clip_are_those_of_its_latent_frames(tokens_dir, objective):
    tokenizer = read_tokenizer_card(tokens_dir)
    card = make_card(tokenizer, objective=objective, actions="move", action_mean=(0.0,), action_scale=(1.0,))
    network = build_network(card).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(4)
    start, actions = draw(network, card)[:2], torch.randn(8, 4, generator=seeded_rng("b"))
    changed = actions.clone()
    changed[6] += 10
    first, second = (draw(network, card, (8, 4, 5), start, Condition(actions=each)) for each in (actions, changed))
    assert np.array_equal(first[:6], second[:6]) and not np.array_equal(first[6], second[6])


@pytest.mark.parametrize("steps", [4, SHAPE[1] * SHAPE[2]], ids=["parallel", "code by code"])
def test_the_cache_does_not_change_samples(network, card, monkeypatch, steps):
    card = replace(card, objective="next")
    settings = {"seed": "c", "guidance": 2.0, "condition": Condition(1), "steps": steps}
    cached = draw(network, card, given=draw(network, card)[:1], **settings)
    frames, masks = [], []

    def uncached(x, cache, append, text=None):
        """Run all frames with two streams, as in training."""
        complete = frames[: cache.frames]
        masks.append(append)
        if append:
            frames[cache.frames :] = list(x.unbind(1))
            cache.frames += x.shape[1]
            return None
        clean = torch.stack([*complete, x[:, 0]], dim=1)
        return network.hidden(clean, clean)[:, -1:]

    monkeypatch.setattr(network, "forward_cached", uncached)
    assert np.array_equal(cached, draw(network, card, given=draw(network, card)[:1], **settings))
    assert masks.count(False) >= 2 * steps


def test_classes_and_guidance_change_samples(network, card):
    cat, dog = (draw(network, card, condition=Condition(label)) for label in (1, 2))
    assert not np.array_equal(cat, dog)
    assert not np.array_equal(cat, draw(network, card, condition=Condition(1), guidance=3.0))
    greedy = draw(network, card, temperature=0.0)
    assert np.array_equal(greedy[0], draw(network, card, temperature=0.0, order="halton")[0])


def test_a_larger_frame_than_trained_on_is_refused(network, card):
    with pytest.raises(UsageError, match="frames of 40x40 are larger than the 40x32"):
        draw(network, card, (3, 5, 5))


def test_mean_codes_are_nearest_to_the_mean_of_what_is_drawn(card):
    network, settings = build_network(card).eval().requires_grad_(False), {"steps": 1, "temperature": 0.0}
    # With one step, all codes are independent of one another: their distributions are those of many samples.
    drawn = np.stack([draw(network, card, seed=str(seed), steps=1) for seed in range(200)])
    vectors = [[torch.linspace(-1, 1, book.size)[:, None]] for book in card.tokenizer.codebooks]
    config = SamplingConfig(**settings, estimate="mean")
    (codes,) = sample_codes(network, card, SHAPE, [SamplePrompt(seeded_rng("a"))], config, vectors)
    # Vectors on a line at equal distances: the nearest code has the rounded mean index.
    assert np.abs(codes - drawn.mean(0)).max() < 4
    assert np.abs(draw(network, card, **settings) - drawn.mean(0)).max() > 8


def test_nucleus_sampling_draws_from_the_most_probable_codes(card):
    network = build_network(card).eval().requires_grad_(False)
    drawn = {
        top_p: np.stack([draw(network, card, seed=str(seed), steps=1, top_p=top_p) for seed in range(30)])
        for top_p in (1e-6, 0.3, 1.0)
    }
    assert (drawn[1e-6] == draw(network, card, steps=1, temperature=0.0)).all()
    distinct = {top_p: [len(np.unique(place)) for place in codes.reshape(30, -1).T] for top_p, codes in drawn.items()}
    assert 1 < np.mean(distinct[0.3]) < np.mean(distinct[1.0]) / 2


def test_mean_codes_with_a_temperature_are_refused():
    with pytest.raises(UsageError, match=r"estimate=mean .* temperature=1.0; set it to 0"):
        SamplingConfig(estimate="mean")


@pytest.mark.parametrize("objective", ["masked", "next"])
@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_a_sample_does_not_depend_on_the_others_of_its_batch(network, card, objective, order):
    card = replace(card, objective=objective)
    # Batches of other sizes round differently, which must not decide between codes here.
    precise = copy.deepcopy(network).double()
    config = SamplingConfig(steps=3, order=order, guidance=1.5)
    given = [draw(network, card, seed=seed)[:1] for seed in "abc"]

    def prompts():
        return [
            SamplePrompt(seeded_rng(str(at)), start, Condition(label=at % 3))
            for at, start in enumerate([*given, given[0]])
        ]

    together = sample_codes(precise, card, (5, 4, 5), prompts(), config)
    alone = [sample_codes(precise, card, (5, 4, 5), [prompt], config)[0] for prompt in prompts()]
    assert all(map(np.array_equal, together, alone))
    assert len({codes.tobytes() for codes in together}) == 4


def test_clips_of_several_shapes_and_prompts_are_generated_in_batches_of_equal_ones(network, card, monkeypatch):
    precise, config, sizes = copy.deepcopy(network).double(), SamplingConfig(steps=1), []

    def sample(network, card, shape, prompts, *more):
        sizes.append(len(prompts))
        return sample_codes(network, card, shape, prompts, *more)

    start = draw(network, card)
    blanked = BlankedVideo(torch.from_numpy(start)[None], torch.ones(1, *SHAPE))
    starts = [None, start[:1], start[:1] + 1, None, start[:2], start[:1], None]
    shapes = [(2, 4, 5), SHAPE, SHAPE, SHAPE, SHAPE, SHAPE, SHAPE]
    conditions = [*[Condition()] * 6, Condition(blanked=blanked)]

    def clips():
        prompts = zip(range(7), starts, conditions, strict=True)
        return list(zip(shapes, [SamplePrompt(seeded_rng(str(at)), *more) for at, *more in prompts], strict=True))

    monkeypatch.setattr("vidvq.generate.sampling.codes.sample_codes", sample)
    together = sample_clips(precise, card, clips(), config, batch=2)
    assert sizes == [1, 2, 1, 1, 1, 1]
    alone = [sample_codes(precise, card, shape, [prompt], config)[0] for shape, prompt in clips()]
    assert all(map(np.array_equal, together, alone)) and len({codes.tobytes() for codes in together}) == 7


@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_decoding_steps_do_not_read_the_device(network, card, order):
    counts = []
    for steps in (2, 8):
        with LaunchCounter() as counted:
            draw(network, card, order=order, steps=steps, guidance=1.5, top_p=0.9)
        counts.append(counted.reads)
    assert counts[0] == counts[1]


def revealed_positions(network, card, monkeypatch, seed, **settings):
    """Positions that each step reveals if codes at later positions are more probable."""
    masks = []

    def embed(codes, mask, *more):
        masks.append(mask.clone())
        return type(network).embed(network, codes, mask, *more)

    monkeypatch.setattr(network, "embed", embed)
    monkeypatch.setattr(_Window, "_draw", lambda self, prediction, positions, *more: (positions * 0, positions * 0.1))
    assert (draw(network, card, seed=seed, order="confidence", **settings) == 0).all()
    hidden = [set(mask.flatten().nonzero().flatten().tolist()) for mask in masks] + [set()]
    return [before - after for before, after in pairwise(hidden)]


def test_the_most_probable_codes_are_revealed_first(network, card, monkeypatch):
    found = revealed_positions(network, card, monkeypatch, "a", steps=8, temperature=0.0)
    counts = [0, *reveal_counts(60, 8)]
    assert found == [set(range(60 - after, 60 - before)) for before, after in pairwise(counts)]
    assert counts[1:3] == [2, 5] and counts[-2] == 49


def test_the_noise_of_the_order_falls_to_0(network, card, monkeypatch):
    orders = [revealed_positions(network, card, monkeypatch, str(seed), steps=60) for seed in range(8)]
    assert all(set.union(*order) == set(range(60)) for order in orders)
    assert len({min(order[0]) for order in orders}) > 3
    # Of those that are left, the most probable ones.
    assert all(min(order[-2]) > max(order[-1]) for order in orders)


def test_codes_are_drawn_in_proportion_to_their_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniform = (torch.arange(1000) + 0.5) / 1000
    drawn = _invert(probabilities.log().expand(1000, 4), uniform)
    assert drawn.bincount(minlength=4).tolist() == [500, 0, 300, 200]


@pytest.fixture
def drawn_rows(network, monkeypatch):
    """Numbers of positions that each head has drawn together, by codebook."""
    rows = [], []
    for head, counts in zip(network.heads, rows, strict=True):

        def sample(hidden, *more, head=head, counts=counts):
            counts.append(len(hidden))
            return type(head).sample(head, hidden, *more)

        monkeypatch.setattr(head, "sample", sample)
    return rows


def test_large_grids_are_drawn_in_parts_of_all_samples(network, card, monkeypatch, drawn_rows):
    whole = draw(network, card)
    monkeypatch.setattr("vidvq.generate.sampling.codes._MAX_LOGITS", 500)
    assert np.array_equal(draw(network, card), whole)
    for counts in drawn_rows:
        counts.clear()
    # A sample would else depend on its place in the batch, because kernels round differently for other sizes.
    sample_codes(network, card, SHAPE, [SamplePrompt(seeded_rng(str(at))) for at in range(3)], SamplingConfig(steps=1))
    assert set(drawn_rows[0]) == {6}


def test_codes_are_drawn_from_the_codebooks_of_the_latent_frames_that_are_not_given(network, card, drawn_rows):
    start = draw(network, card, steps=1)
    assert drawn_rows == ([60], [60])
    for objective, expected in {"masked": ([60], [60, 40]), "next": ([60], [60, 40, 20, 20])}.items():
        draw(network, replace(card, objective=objective), given=start[:1], steps=1)
        assert drawn_rows == expected
