"""Adaptive differential quantization over time."""

from dataclasses import replace

import pytest
import torch

from vidvq.errors import UsageError
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import (
    DifferentialConfig,
    FSQConfig,
    QuantizerConfig,
    ResidualConfig,
    ResidualQuantizer,
    SpatiotemporalQuantizer,
    VectorQuantizer,
    VQConfig,
    vq,
)
from vidvq.model.quantize.differential import DifferentialCoding, Prediction

DIM = 6
BOOK = VQConfig(size=256, warmup=0)
REFRESHED = DifferentialConfig(target=0.5, refresh=BOOK)


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


def test_a_refresh_code_recovers_a_change_of_scene_at_once():
    latents = torch.randn(1, DIM, 1, 12, 12).repeat(1, 1, 12, 1, 1)
    latents[:, :, 8:] = 3 * torch.randn(1, DIM, 1, 12, 12)
    plain, book = make(), make(REFRESHED)
    assert book.refresh is not None
    book.refresh.codebook.copy_(3 * torch.randn(BOOK.size, DIM))
    found, without = errors(book, latents), errors(plain, latents)
    assert found[7] < 0.35 * found[0]
    assert found[8] < 0.8 * without[8]
    codes, _ = book.encode(latents, first=True)
    fresh = codes >= BOOK.size
    assert book.codebooks[1].size == 2 * BOOK.size > codes.max()
    assert not fresh[:, :1].any()
    assert fresh[:, 8].float().mean() > 0.6 > 0.2 > fresh[:, 2:8].float().mean()
    # Its latents are those of the codebook, whatever came before.
    decoded, state = book.lookup(codes[:, :9], first=True)
    restarted = decoded[0, :, 8][:, fresh[0, 8]].T
    assert torch.equal(restarted, book.refresh.lookup(codes[0, 8][fresh[0, 8]] - BOOK.size))
    assert (state[1][0][fresh[0, 8]] == REFRESHED.start).all()


def test_latents_that_take_a_code_of_the_other_codebook_train_nothing():
    torch.manual_seed(0)
    book = VectorQuantizer(replace(BOOK, update="gradient", revive_below=0.9), DIM).train()
    near, far = torch.randn(50, DIM), torch.full((50, DIM), 100.0)
    used = torch.arange(100) < 50
    alone = VectorQuantizer(replace(BOOK, update="gradient", revive_below=0.9), DIM).train()
    alone.load_state_dict(book.state_dict())
    for part in (book, alone):
        part.begin_pass()
    _, _, loss = book.run_pass(torch.cat([near, far]), used)
    _, _, wanted = alone.run_pass(near)
    # Means over all latents, and over those that are used; dead codes were replaced by used latents at random.
    assert book.codebook.max() < 10
    assert loss.item() < 2 * wanted.item()
    averaged = VectorQuantizer(replace(BOOK, revive_below=0.0), DIM).train()
    same = VectorQuantizer(replace(BOOK, revive_below=0.0), DIM).train()
    same.load_state_dict(averaged.state_dict())
    for part in (averaged, same):
        part.begin_pass()
    averaged.run_pass(torch.cat([near, far]), used)
    same.run_pass(near)
    torch.testing.assert_close(averaged.codebook, same.codebook)


def test_codes_stay_where_they_are_while_no_latent_takes_them():
    torch.manual_seed(0)
    book = VectorQuantizer(VQConfig(size=8, warmup=0, decay=0.5, revive_below=0.0), DIM).train()
    for _ in range(20):
        book(torch.randn(64, DIM))
    before = book.codebook.clone()
    # Averages of nothing halve in each pass.
    for _ in range(60):
        book.begin_pass()
        book.run_pass(torch.randn(64, DIM), torch.zeros(64, dtype=torch.bool))
    torch.testing.assert_close(book.codebook, before)


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


@pytest.mark.parametrize(
    ("temporal", "differential"),
    [
        (BOOK, DifferentialConfig()),
        (FSQConfig(levels=(3, 4, 3, 3, 3, 3)), DifferentialConfig()),
        (BOOK, DifferentialConfig(refresh=VQConfig(size=128, warmup=0))),
    ],
    ids=["vq", "fsq", "refresh"],
)
def test_training_quantizes_like_inference(temporal, differential):
    torch.manual_seed(0)
    book = SpatiotemporalQuantizer(QuantizerConfig(DIM, BOOK, temporal, differential)).eval()
    latents = torch.randn(2, DIM, 5, 4, 4, requires_grad=True)
    done = book(latents)
    codes, _ = book.encode(latents.detach(), first=True)
    assert torch.equal(done.codes, codes)
    torch.testing.assert_close(done.latents.detach(), book.lookup(codes, first=True)[0], atol=1e-5, rtol=0)
    assert done.commitment_loss.isfinite()


@pytest.mark.parametrize("differential", [None, REFRESHED], ids=["differences", "refresh"])
def test_the_gradient_passes_straight_through_and_the_commitment_is_in_units_of_latents(differential):
    book = make(differential)
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


@pytest.mark.parametrize(("differential", "books"), [(None, 1), (REFRESHED, 2)], ids=["differences", "refresh"])
def test_training_searches_each_latent_once(differential, books, monkeypatch):
    searched, search = [], vq.nearest_codes

    def count(latents, codebook):
        searched.append(len(latents))
        return search(latents, codebook)

    monkeypatch.setattr(vq, "nearest_codes", count)
    make(differential).train()(torch.randn(2, DIM, 5, 3, 3))
    assert sum(searched) == 2 * 3 * 3 * (1 + 4 * books)


def test_a_pass_is_one_step_of_a_residual_codebook():
    books = ResidualConfig(layer=VQConfig(size=8, warmup=5))
    book = SpatiotemporalQuantizer(QuantizerConfig(DIM, BOOK, books, DifferentialConfig())).train()
    for _ in range(3):
        book(torch.randn(2, DIM, 5, 3, 3))
    assert isinstance(book.temporal, ResidualQuantizer)
    assert book.temporal.layers[0].step == 3


@pytest.mark.parametrize("refresh", [None, replace(BOOK, warmup=1), replace(BOOK, warmup=3)], ids=str)
def test_the_codebook_learns_differences(refresh):
    torch.manual_seed(0)
    book = replace(BOOK, warmup=2)
    config = QuantizerConfig(DIM, book, book, DifferentialConfig(refresh=refresh))
    book = SpatiotemporalQuantizer(config).train()
    found, fresh = [], []
    for _ in range(60):
        moving = torch.randn(4, DIM, 1, 8, 8) + 0.1 * torch.randn(4, DIM, 5, 8, 8).cumsum(dim=2)
        moving[:, :, 3:, :3] = torch.randn(4, DIM, 1, 3, 8)
        done = book(moving)
        found.append((done.latents - moving).square().mean().item())
        fresh.append((done.codes >= 256)[:, 3, :3].float().mean().item())
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert sum(found[-10:]) < 0.95 * sum(found[4:14])
    assert (fresh[-1] > 0.3) == bool(refresh)
    assert book.warms_up(6) is False


def test_differences_and_latents_do_not_share_a_codebook():
    with pytest.raises(UsageError, match="differential needs a temporal codebook"):
        QuantizerConfig(DIM, BOOK, None, DifferentialConfig())
    with pytest.raises(UsageError, match="must have values above 0, and start and largest >= smallest"):
        DifferentialConfig(largest=0.01)
    with pytest.raises(UsageError, match="start and largest >= smallest"):
        # The steps of the encoder would be larger than those of the decoder.
        DifferentialConfig(start=0.05)


def test_refresh_codes_need_two_codebooks_of_vectors():
    with pytest.raises(UsageError, match="refresh needs a temporal codebook of kind vq without cosine"):
        QuantizerConfig(DIM, BOOK, FSQConfig(levels=(3, 4)), REFRESHED)
    with pytest.raises(UsageError, match="refresh.cosine=True must be False"):
        DifferentialConfig(refresh=VQConfig(cosine=True))
    with pytest.raises(UsageError, match="may have 16777216 codes together"):
        QuantizerConfig(DIM, BOOK, VQConfig(size=1 << 24), REFRESHED)


def test_configs_without_it_are_written_as_before():
    plain = TokenizerConfig()
    assert "differential" not in plain.to_dict()["quantizer"]
    mine = TokenizerConfig(quantizer=QuantizerConfig(DIM, BOOK, BOOK, DifferentialConfig(reach=1.5)))
    assert TokenizerConfig.from_dict(mine.to_dict()) == mine
    assert "refresh" not in mine.to_dict()["quantizer"]["differential"]
    fresh = TokenizerConfig(quantizer=QuantizerConfig(DIM, BOOK, BOOK, REFRESHED))
    assert TokenizerConfig.from_dict(fresh.to_dict()) == fresh


def test_an_empty_slot_of_a_batch_does_not_disturb_the_others():
    small = StackConfig((8, 8), (1, 1))
    books = QuantizerConfig(DIM, BOOK, BOOK, DifferentialConfig())
    tokenizer = VideoTokenizer(
        TokenizerConfig(encoder=small, decoder=DecoderConfig(small.channels, small.blocks), quantizer=books)
    ).eval()
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    codes = tokenizer.encode(video)
    _, state = tokenizer.encode_step(video[:, :, :1])
    batch = type(state).stack([None, state])
    found, after = tokenizer.encode_step(torch.cat([torch.zeros_like(video), video])[:, :, 1:], batch)
    assert torch.equal(found[1], codes[0, 1:])
    assert all(tensor.isfinite().all() for tensor in after.past)
