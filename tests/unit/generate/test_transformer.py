"""Attention masks, the cache, and normalized probabilities."""

import pytest
import torch

from vidvq.errors import UsageError
from vidvq.generate.network.block import KVCache, TransformerConfig
from vidvq.generate.network.previous import UNKNOWN
from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.network.vocabulary import CodebookHead, factorize

SHAPE = (2, 4, 3, 2)


def network(attention="full", copy_radius=None, **options):
    torch.manual_seed(0)
    config = TransformerConfig(24, 3, 2, 2.0, attention, copy_radius=copy_radius)
    made = VideoTransformer(config, (11, 13), **options).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4)
    return made.requires_grad_(False)


def codes():
    return torch.randint(0, 11, SHAPE, generator=torch.Generator().manual_seed(1))


def mask_at(*positions):
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    for position in positions:
        mask[position] = True
    return mask


@pytest.mark.parametrize("attention", ["full", "axial"])
def test_next_attends_only_to_complete_earlier_frames_and_visible_codes_of_the_same_frame(attention):
    model, before = network(attention), codes()
    mask = mask_at((0, 2, 1, 1))
    nll = model(before, mask, True)
    for position, matters in {(0, 1, 2, 0): True, (0, 2, 1, 0): True, (0, 3, 0, 0): False, (1, 1, 0, 0): False}.items():
        after = before.clone()
        after[position] = (after[position] + 1) % 11
        assert bool((model(after, mask, True) != nll).any()) == matters, position
    # The hidden code itself is a target only.
    clean = model.embed(before, None)
    changed = before.clone()
    changed[0, 2, 1, 1] += 1
    assert torch.equal(
        model.hidden(model.embed(before, mask), clean)[0, 2, 1, 1],
        model.hidden(model.embed(changed, mask), model.embed(changed, None))[0, 2, 1, 1],
    )


def test_masked_attends_to_all_visible_codes_and_no_hidden_one():
    model, before = network(), codes()
    mask = mask_at((0, 1, 0, 0), (0, 2, 1, 1))
    hidden = model.hidden(model.embed(before, mask))
    for position, matters in {(0, 3, 2, 1): True, (0, 0, 0, 0): True, (0, 2, 1, 1): False, (1, 0, 0, 0): False}.items():
        after = before.clone()
        after[position] = (after[position] + 1) % 11
        same = torch.equal(model.hidden(model.embed(after, mask))[0, 1, 0, 0], hidden[0, 1, 0, 0])
        assert same != matters, position


@pytest.mark.parametrize("attention", ["full", "axial"])
def test_cached_and_uncached_hidden_vectors_are_equal(attention):
    model, whole = network(attention), codes()
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.5
    expected = model.hidden(model.embed(whole, mask), model.embed(whole, None))
    cache = KVCache()
    model.forward_cached(model.embed(whole[:, :2], None), cache, append=True)
    for t in (2, 3):
        got = model.forward_cached(model.embed(whole[:, t : t + 1], mask[:, t : t + 1], t), cache, append=False)
        torch.testing.assert_close(got, expected[:, t : t + 1], atol=1e-4, rtol=1e-4)
        model.forward_cached(model.embed(whole[:, t : t + 1], None, t), cache, append=True)
    assert cache.frames == 4


def test_positions_matter():
    model, same = network(), torch.zeros(SHAPE, dtype=torch.int64)
    hidden = model.hidden(model.embed(same, mask_at((0, 1)))).flatten(1, 3)[0, 6:12]
    assert len({tuple(vector.tolist()) for vector in hidden}) == 6


@pytest.mark.parametrize(("size", "limit"), [(7, 7), (7, 6), (12, 6), (65_537, 1 << 16)])
def test_the_probabilities_of_all_codes_sum_to_one(size, limit):
    torch.manual_seed(0)
    head = CodebookHead(size, 8, limit)
    assert len(head.digits) == (1 if size <= limit else 2)
    nll = head.nll(torch.randn(1, 8).expand(size, 8), torch.arange(size))
    assert torch.exp(-nll.detach().double()).sum().item() == pytest.approx(1, abs=1e-4)


def test_a_factorised_head_samples_valid_codes_only():
    torch.manual_seed(0)
    head = CodebookHead(7, 8, limit=6)
    assert factorize(7, 6) == (3, 3)
    drawn = head.sample(torch.randn(500, 8), lambda logits, _: torch.distributions.Categorical(logits=logits).sample())
    assert set(drawn.tolist()) == set(range(7))


def test_guidance_extrapolates_from_the_logits_without_conditions():
    torch.manual_seed(0)
    head, hidden, other, seen = CodebookHead(7, 8, limit=6, copies=1), torch.randn(5, 8), torch.randn(5, 8), []
    copies, none = torch.full((5, 1), 6), torch.full((5, 1), UNKNOWN)
    torch.nn.init.ones_(head.gates.bias)

    def draw(logits, index):
        seen.append(logits)
        return torch.full((5,), 0 if index else 2)

    for arguments in ((hidden, draw, copies), (other, draw, none), (hidden, draw, copies, (other, none), 3.0)):
        assert head.sample(*arguments).tolist() == [6] * 5
    # Of high digit 2, only low digit 0 makes a code below 7.
    for conditional, without, guided in zip(seen[:2], seen[2:4], seen[4:], strict=True):
        expected = without + 3 * (conditional - without)
        torch.testing.assert_close(guided, expected.masked_fill(conditional.isneginf(), -torch.inf))
    assert seen[5].isneginf().tolist() == [[False, True, True]] * 5


def test_dropped_conditions_equal_no_conditions():
    model = network(labels=3, actions=2, sees_blanked=True)
    grid, kept = codes(), torch.tensor([True, False])
    given = {
        "labels": torch.tensor([2, 2]),
        "actions": torch.ones(2, 4, 2),
        "blanked": codes(),
        "visible": torch.ones(SHAPE),
    }
    some, none = model.condition(grid, **given, kept=kept), model.condition(grid)
    assert torch.equal(some[1], none[1].expand_as(some[1])) and not torch.equal(some[0], none[0].expand_as(some[0]))
    for name in given:
        without = model.condition(grid, **{key: value for key, value in given.items() if key not in (name, "visible")})
        assert name == "visible" or not torch.equal(without[0].expand_as(some[0]), some[0]), name


def test_a_width_that_is_no_multiple_of_heads_is_refused():
    with pytest.raises(UsageError, match="width=10 depth=1 heads=4"):
        TransformerConfig(10, 1, 4)


@pytest.mark.parametrize("attention", ["full", "axial"])
def test_half_precision_is_that_of_the_blocks_alone(attention):
    full, half = network(attention), network(attention)
    half.use_half(torch.bfloat16)
    x = full.embed(codes(), None)
    expected, found = full.hidden(x), half.hidden(x)
    cached = half.forward_cached(x[:, :1], KVCache(), append=False)
    assert found.dtype == cached.dtype == torch.float32
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.05
    assert {weight.dtype for weight in half.heads.parameters()} == {torch.float32}


@pytest.mark.parametrize("two_streams", [False, True])
def test_training_does_not_read_the_device(two_streams):
    mask = mask_at((0, 0, 1, 1), (1, 2), (1, 3, 0, 1))
    expected = network(copy_radius=1, labels=3, actions=2)(codes(), mask, two_streams)
    with torch.device("meta"):
        # Tensors without values: whoever reads one gets an error.
        empty = VideoTransformer(TransformerConfig(24, 3, 2, 2.0, copy_radius=1), (11, 13), labels=3, actions=2)
        given = {"labels": torch.ones(2, dtype=torch.int64), "actions": torch.ones(2, 4, 2)}
        found = empty(codes().to("meta"), mask, two_streams, kept=torch.ones(2, dtype=torch.bool), **given)
    assert found.shape == expected.shape == (mask.sum(),)
