"""Adaptive differential quantization over time."""

from dataclasses import replace

import pytest
import torch

from vidvq.errors import UsageError
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import StackConfig
from vidvq.model.quantize import (
    DifferentialConfig,
    FSQConfig,
    QuantizerConfig,
    SpatiotemporalQuantizer,
    VectorQuantizer,
    VQConfig,
)
from vidvq.model.quantize.differential import DifferentialCoding, Prediction

DIM = 6
BOOK = VQConfig(size=256, warmup=0)


def make(differential: DifferentialConfig | None = None) -> SpatiotemporalQuantizer:
    torch.manual_seed(0)
    book = SpatiotemporalQuantizer(QuantizerConfig(DIM, BOOK, BOOK, differential or DifferentialConfig(target=0.5)))
    assert isinstance(book.temporal, VectorQuantizer)
    with torch.no_grad():
        # Trained codes have many lengths; those of a random codebook are alike.
        book.temporal.codebook.mul_(torch.exp(torch.randn(BOOK.size, 1)))
    return book.eval()


def errors(book: SpatiotemporalQuantizer, latents: torch.Tensor) -> list[float]:
    """RMS error of each group."""
    decoded, _ = book.lookup(book.encode(latents, first=True)[0], first=True)
    return [group.square().mean().sqrt().item() for group in (decoded - latents).unbind(dim=2)]


def test_a_static_scene_becomes_more_exact_with_each_group():
    book = make()
    still = torch.randn(1, DIM, 1, 12, 12).expand(-1, -1, 9, -1, -1)
    found = errors(book, still)
    assert found[8] < 0.35 * found[0]
    # Each group by itself never improves.
    alone = SpatiotemporalQuantizer(QuantizerConfig(DIM, BOOK, BOOK)).eval()
    repeated = errors(alone, still)
    assert repeated[8] == pytest.approx(repeated[1])


def test_a_change_of_scene_is_recovered_from():
    book = make()
    latents = torch.randn(1, DIM, 1, 12, 12).repeat(1, 1, 20, 1, 1)
    latents[:, :, 8:] = torch.randn(1, DIM, 1, 12, 12)
    found = errors(book, latents)
    assert found[7] < 0.35 * found[0]
    assert found[8] > found[7]
    assert found[19] < 0.35 * found[0]


def test_the_step_size_follows_the_codes_within_its_limits():
    config = DifferentialConfig(start=0.5, smallest=0.1, largest=1.0)
    coding = DifferentialCoding(config)
    past = coding.start(torch.zeros(1, 1, 1, DIM))
    assert past.scale.item() == 0.5
    # Four times the target: twice the step, up to the largest.
    assert coding.update(torch.full((1, 1, 1, DIM), 4.0), past).scale.item() == 1.0
    assert coding.update(torch.full((1, 1, 1, DIM), 9.0), past).scale.item() == 1.0
    assert coding.update(torch.full((1, 1, 1, DIM), 0.25), past).scale.item() == 0.25
    assert coding.update(torch.zeros(1, 1, 1, DIM), past).scale.item() == pytest.approx(0.1)


def test_nothing_is_predicted_beyond_the_reach():
    coding = DifferentialCoding(DifferentialConfig(reach=1.0, largest=4.0))
    latents, known = torch.ones(1, 1, 1, DIM), torch.full((1, 1, 1, DIM), 3.0)
    far = Prediction(known, torch.full((1, 1, 1, 1), 2.0))
    assert torch.equal(coding.difference(latents, far), latents / 2)
    near = Prediction(known, torch.full((1, 1, 1, 1), 0.5))
    assert torch.equal(coding.difference(latents, near), (latents - 0.75 * known) / 0.5)


@pytest.mark.parametrize("temporal", [BOOK, FSQConfig(levels=(3, 4, 3, 3, 3, 3))], ids=["vq", "fsq"])
def test_training_quantizes_like_inference(temporal):
    torch.manual_seed(0)
    book = SpatiotemporalQuantizer(QuantizerConfig(DIM, BOOK, temporal, DifferentialConfig())).eval()
    latents = torch.randn(2, DIM, 5, 4, 4, requires_grad=True)
    done = book(latents)
    codes, _ = book.encode(latents.detach(), first=True)
    assert torch.equal(done.codes, codes)
    torch.testing.assert_close(done.latents.detach(), book.lookup(codes, first=True)[0], atol=1e-5, rtol=0)
    assert done.commitment_loss.isfinite()


def test_the_gradient_passes_straight_through_and_the_commitment_is_in_units_of_latents():
    book = make()
    latents = torch.randn(1, DIM, 5, 3, 3, requires_grad=True)
    target = torch.randn_like(latents)
    done = book(latents)
    ((done.latents - target).square().sum()).backward(retain_graph=True)
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, 2 * (done.latents - target).detach(), atol=1e-4, rtol=1e-4)
    latents.grad = None
    done.commitment_loss.backward()
    error = (latents - done.latents).detach()
    torch.testing.assert_close(latents.grad, 2 * error / error.numel(), atol=1e-6, rtol=1e-3)


def test_the_codebook_learns_differences():
    torch.manual_seed(0)
    config = QuantizerConfig(DIM, replace(BOOK, warmup=2), replace(BOOK, warmup=2), DifferentialConfig())
    book = SpatiotemporalQuantizer(config).train()
    found = []
    for _ in range(60):
        moving = torch.randn(4, DIM, 1, 8, 8) + 0.1 * torch.randn(4, DIM, 5, 8, 8).cumsum(dim=2)
        found.append((book(moving).latents - moving).square().mean().item())
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert found[-1] < 0.9 * found[3]


def test_differences_and_latents_do_not_share_a_codebook():
    with pytest.raises(UsageError, match="differential needs a temporal codebook"):
        QuantizerConfig(DIM, BOOK, None, DifferentialConfig())
    with pytest.raises(UsageError, match="must have values above 0, and largest >= smallest"):
        DifferentialConfig(largest=0.01)


def test_configs_without_it_are_written_as_before():
    plain = TokenizerConfig()
    assert "differential" not in plain.to_dict()["quantizer"]
    mine = TokenizerConfig(quantizer=QuantizerConfig(DIM, BOOK, BOOK, DifferentialConfig(reach=1.5)))
    assert TokenizerConfig.from_dict(mine.to_dict()) == mine


def test_an_empty_slot_of_a_batch_does_not_disturb_the_others():
    small = StackConfig((8, 8), (1, 1))
    books = QuantizerConfig(DIM, BOOK, BOOK, DifferentialConfig())
    tokenizer = VideoTokenizer(TokenizerConfig(encoder=small, decoder=small, quantizer=books)).eval()
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    codes = tokenizer.encode(video)
    _, state = tokenizer.encode_step(video[:, :, :1])
    batch = type(state).stack([None, state])
    found, after = tokenizer.encode_step(torch.cat([torch.zeros_like(video), video])[:, :, 1:], batch)
    assert torch.equal(found[1], codes[0, 1:])
    assert all(tensor.isfinite().all() for tensor in after.past)
