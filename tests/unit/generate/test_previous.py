"""The previous latent frame as an input, and codes that are copied from it."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.generators import MODEL, make_card
from vidvq.errors import UsageError
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.blanking import BlankedVideo
from vidvq.generate.network.block import TransformerConfig
from vidvq.generate.network.build import build_network
from vidvq.generate.network.previous import add_copies, neighbors, previous_codes
from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.network.vocabulary import CodebookHead
from vidvq.generate.requests import SamplingConfig
from vidvq.generate.sampling.codes import Condition, SamplePrompt, sample_codes
from vidvq.generate.training.examples import seeded_rng

SHAPE = (2, 4, 3, 2)


def loud(network):
    """Weights that make everything matter, the gates too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(torch.randn_like(weight)) if "gates" in name else weight.mul_(4)
    return network.eval().requires_grad_(False)


def network(codebooks=(11, 13), **options):
    torch.manual_seed(0)
    return loud(VideoTransformer(TransformerConfig(24, 2, 2, 2.0, copy_radius=1), codebooks, **options))


def codes():
    return torch.randint(0, 11, SHAPE, generator=torch.Generator().manual_seed(1))


def test_the_previous_code_is_unknown_where_it_is_hidden_or_there_is_none():
    grid = torch.arange(6).reshape(1, 3, 1, 2)
    holes = grid == 3
    assert previous_codes(grid).flatten().tolist() == [-1, -1, 0, 1, 2, 3]
    assert previous_codes(grid, holes).flatten().tolist() == [-1, -1, 0, 1, 2, -1]
    assert previous_codes(grid, before=torch.full((1, 1, 1, 2), 9)).flatten().tolist() == [9, 9, 0, 1, 2, 3]
    # A hidden code is replaced by a given one, and no other.
    assert previous_codes(grid, holes, given=grid + 10).flatten().tolist() == [-1, -1, 0, 1, 2, 13]


def test_a_window_has_its_neighbors_in_raster_order():
    around = neighbors(torch.arange(6).reshape(1, 1, 2, 3), 1)[0, 0]
    assert around[0, 1].tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5]
    assert around[1, 2].tolist() == [1, 2, -1, 4, 5, -1, -1, -1, -1]


def test_gates_raise_candidates_and_equal_ones_add_up():
    gates = torch.tensor([[1.0, 2.0, 4.0]])
    raised = add_copies(torch.zeros(1, 4), torch.tensor([[2, 2, -1]]), gates)
    assert raised.tolist() == [[0, 0, 3, 0]]


def test_equal_candidates_are_added_in_one_order():
    """A GPU adds what a call of ``scatter_add`` adds to one element in any order."""
    digits = torch.randint(-1, 3, (5, 4), generator=torch.Generator().manual_seed(0))
    gates, logits = torch.randn(5, 4, requires_grad=True), torch.randn(5, 3)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), settings=None):
            if "scatter_add" in str(function):
                seen.append(arguments[2].shape)
            return function(*arguments, **(settings or {}))

    with Watch():
        raised = add_copies(logits, digits, gates)
    assert seen == [(5, 1)] * 4
    expected = logits.scatter_add(-1, digits.clamp(min=0), gates.masked_fill(digits < 0, 0))
    assert torch.equal(raised, expected)
    weight = torch.randn(5, 3)
    found, wanted = (torch.autograd.grad((each * weight).sum(), gates)[0] for each in (raised, expected))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("limit", [20, 6])
def test_probabilities_with_copies_add_up_to_one_and_a_gate_decides(limit):
    head = loud(CodebookHead(20, 8, limit, copies=2))
    copies = torch.tensor([[17, -1]])
    hidden = torch.randn(1, 8)
    nll = head.nll(hidden.expand(20, 8), torch.arange(20), copies.expand(20, 2))
    assert torch.exp(-nll.double()).sum().item() == pytest.approx(1, abs=1e-4)
    change = nll - head.nll(hidden.expand(20, 8), torch.arange(20))
    assert change.abs().max() > 0.1
    # All other codes change alike or, with two digits of 4x5 values, those of each other high digit.
    others = [torch.arange(20) != 17] if limit == 20 else [torch.arange(20) // 5 == high for high in range(3)]
    assert all(torch.allclose(change[other], change[other][0], atol=1e-4) for other in others)
    head.gates.bias.fill_(1000)
    assert head.sample(hidden, lambda logits, _: logits.argmax(-1), copies).tolist() == [17]


@pytest.mark.parametrize("two_streams", [False, True])
@pytest.mark.parametrize("codebooks", [(11, 13), (11,)])
def test_no_hidden_code_reaches_the_others(two_streams, codebooks):
    model, before = network(codebooks), codes()
    holes = torch.zeros(SHAPE, dtype=torch.bool)
    holes[0, 2] = holes[0, 3, 0] = True
    frame_of = torch.tensor([2] * 6 + [3] * 2)
    nll = model(before, holes, two_streams)
    after = before.clone()
    after[0, 2, 1, 1] = (after[0, 2, 1, 1] + 1) % 11
    changed = (model(after, holes, two_streams) != nll).tolist()
    # Its own likelihood changes; with two streams, later frames see the complete frame.
    assert changed[3] and not any(value for at, value in enumerate(changed) if at != 3 and frame_of[at] == 2)
    assert all(changed[6:]) == two_streams and any(changed[6:]) == two_streams


def test_a_code_is_a_candidate_in_its_own_codebook_alone():
    found = network().candidates(previous_codes(codes()))
    assert found.shape == (*SHAPE, 9) and (found[:, :2] == -1).all() and (found[:, 2:] >= 0).any()
    assert (network((11,)).candidates(previous_codes(codes()))[:, 1] >= 0).any()


def test_what_is_visible_is_a_candidate_unless_it_is_dropped():
    model, grid = network(sees_blanked=True), codes()
    visible = torch.ones(SHAPE)
    visible[0, 1, 0, 0] = 0
    kept = torch.tensor([True, False])
    last = model.candidates(previous_codes(grid), model.given_codes(grid + 1, visible, kept))[..., -1]
    assert (last[1] == -1).all() and last[0, 1, 0, 0] == -1 and torch.equal(last[0, 2], grid[0, 2] + 1)


def test_codes_can_be_copied_from_a_visible_frame_before_any_is_revealed(tokens_dir):
    """With gates that copy from the same place of the previous latent frame, in training and in sampling."""
    card = make_card(read_tokenizer_card(tokens_dir), model=MODEL | {"copy_radius": 1})
    model = build_network(card).eval().requires_grad_(False)
    for head in model.heads:
        head.gates.bias[4] = 100
    given, visible = torch.randint(0, 32, (1, 3, 4, 5), generator=seeded_rng("a")), torch.zeros(1, 3, 4, 5)
    visible[:, 1] = 1
    copied = given.clone()
    copied[:, 2] = given[:, 1]
    nll = model(copied, torch.ones_like(copied, dtype=torch.bool), False, blanked=given, visible=visible)
    assert nll[-20:].max() < 0.01 < nll[:-20].min()
    # From both codebooks, of which neither has the codes of the other.
    given[:, 1] += 32
    condition, config = Condition(blanked=BlankedVideo(given, visible)), SamplingConfig(steps=1, temperature=0.0)
    (found,) = sample_codes(model, card, (3, 4, 5), [SamplePrompt(seeded_rng("b"), condition=condition)], config)
    assert (found[2] == given[0, 1].numpy()).all()


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_sampling_takes_the_codes_that_training_finds_most_probable(tokens_dir, objective):
    """Of a frame that is drawn at once, as its likelihood in a training pass sees it."""
    model = MODEL | {"copy_radius": 1}
    card = replace(make_card(read_tokenizer_card(tokens_dir), model=model), objective=objective)
    made = loud(build_network(card))
    config, random = SamplingConfig(steps=1, temperature=0.0), seeded_rng("a")
    start = torch.randint(0, 32, (2, 4, 5), generator=random).numpy()
    grid = torch.from_numpy(sample_codes(made, card, (3, 4, 5), [SamplePrompt(random, start)], config)[0])[None]
    holes = torch.zeros(grid.shape, dtype=torch.bool)
    holes[:, 2] = True
    best = made(grid, holes, objective == "next")
    for code in range(64):
        other = grid.clone()
        other[:, 2] = code
        assert (made(other, holes, objective == "next") >= best - 1e-4).all()


def test_a_network_without_a_radius_is_as_before():
    torch.manual_seed(0)
    plain = VideoTransformer(TransformerConfig(24, 2, 2, 2.0), (11, 13))
    assert plain.candidates(previous_codes(codes())) is None
    assert not {name for name in plain.state_dict() if "gates" in name or "previous" in name}
    nll = plain(codes(), torch.ones(SHAPE, dtype=torch.bool), False)
    assert nll.mean().item() == pytest.approx((math.log(11) + 3 * math.log(13)) / 4, abs=0.3)


def test_a_negative_radius_is_refused():
    with pytest.raises(UsageError, match="copy_radius=-1 must be 0 or more"):
        TransformerConfig(24, 2, 2, copy_radius=-1)
