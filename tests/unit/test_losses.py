"""The loss terms, their schedules and the guard, against their formulas."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vidvq.data import DataConfig
from vidvq.model.launches import LaunchCounter
from vidvq.model.tokenizer import Reconstruction
from vidvq.train import trainer
from vidvq.train.config import GuardConfig, LossConfig, OptimizerConfig, TrainConfig
from vidvq.train.loop import _TrainingLoop
from vidvq.train.losses import (
    LeCam,
    adaptive_weight,
    adversarial,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    mask_blocks,
    perturb,
    wavelet_l1,
)
from vidvq.train.objective import Objective
from vidvq.train.trainer import Trainer
from vidvq.training.distributed import DistributedContext
from vidvq.training.guard import BufferSnapshot, LossSpikeGuard, RollbackNeeded, Skipped
from vidvq.training.mean_terms import MeanTerms
from vidvq.training.random_state import sample_generators, seed_micro_batch
from vidvq.training.schedule import Ramp, learning_rate, weight_at
from vidvq.training.training_state import Progress


def test_hinge_loss_is_zero_beyond_the_margins():
    assert discriminator_loss("hinge", torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -5.0])) == 0
    assert discriminator_loss("hinge", torch.tensor([0.0]), torch.tensor([0.0])) == 1
    assert generator_loss("hinge", torch.tensor([1.0, 3.0])) == -2


def test_non_saturating_loss_is_the_log_likelihood():
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([0.7, -2.0])
    expected = -0.5 * (real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean())
    assert float(discriminator_loss("non_saturating", real, fake)) == pytest.approx(float(expected), rel=1e-6)
    assert float(generator_loss("non_saturating", fake)) == pytest.approx(float(-fake.sigmoid().log().mean()), rel=1e-6)


def test_the_gradient_penalty_estimates_the_squared_gradient_norm():
    torch.manual_seed(0)
    slope = torch.randn(64)
    video = torch.randn(20_000, 64)
    estimate = gradient_penalty(video @ slope, perturb(video) @ slope)
    assert float(estimate) == pytest.approx(float(slope.square().sum()), rel=0.05)


def test_the_adaptive_weight_balances_the_two_gradients():
    leaf = torch.tensor([3.0, 4.0], requires_grad=True)
    for limit, expected in ((100, 5), (3, 3)):
        pull, push = (leaf * torch.tensor([6.0, 8.0])).sum(), (leaf * torch.tensor([0.0, 2.0])).sum()
        assert float(adaptive_weight(pull, push, leaf, limit)) == pytest.approx(expected)


def test_the_adaptive_weight_is_that_of_the_batches_of_all_ranks(monkeypatch):
    torch.manual_seed(0)
    videos, pulls, pushes = torch.randn(3, 4, 6)

    def weight(chosen):
        leaf = videos[chosen].clone().requires_grad_()
        losses = [(leaf.square() * scale[chosen]).sum(dim=1).mean() for scale in (pulls, pushes)]
        return float(adaptive_weight(*losses, leaf, 100))

    whole, sent = weight(slice(4)), []
    monkeypatch.setattr(adversarial, "all_reduce_sum", lambda norms: (sent.append(norms.clone()), norms)[1])
    alone = weight(slice(2))
    monkeypatch.setattr(adversarial, "all_reduce_sum", lambda norms: norms + sent[0])
    assert weight(slice(2, 4)) == pytest.approx(whole) != pytest.approx(alone)


def test_lecam_pulls_towards_the_other_side():
    lecam = LeCam(decay=0.5)
    lecam.update(2.0, -2.0)
    assert (lecam.real, lecam.fake) == (1.0, -1.0)
    penalty = lecam(torch.tensor([2.0]), torch.tensor([-2.0]))
    assert float(penalty) == pytest.approx((2 + 1) ** 2 + (1 + 2) ** 2)


def test_the_squared_error_has_a_gradient_only_if_it_is_a_loss():
    video, whole = torch.rand(2, 1, 3, 2, 4, 4, requires_grad=True).unbind()
    for weight in (0.0, 0.5):
        config = TrainConfig(DataConfig(("unused",)), loss=LossConfig(l2=weight))
        squared = Objective(config, (4, 8, 8), None)._distances(video.detach(), whole)["l2"]
        assert squared.requires_grad == (weight > 0)
        torch.testing.assert_close(squared, (whole - video).square().mean())


@pytest.mark.parametrize(("commitment", "guarded"), [(2.0, 1.5), (-20.0, 1.0), (math.nan, math.nan)])
def test_a_negative_entropy_loss_does_not_lower_what_the_guard_compares(commitment, guarded):
    config = TrainConfig(DataConfig(("unused",)), loss=LossConfig(adversarial=0.0))
    video = torch.zeros(1, 3, 1, 4, 4)
    out = Reconstruction(video + 1, torch.zeros(1, 1, 1, 1), torch.tensor(commitment))
    found = Objective(config, (4, 8, 8), None).generator(0, video, out, lambda video: video)
    assert float(found.total) == pytest.approx(1 + 0.25 * commitment, nan_ok=True)
    assert float(found.guarded) == pytest.approx(guarded, nan_ok=True)


def test_masked_copies_are_compared_with_the_clips_they_are_copies_of():
    config = TrainConfig(DataConfig(("unused",)), loss=LossConfig(adversarial=0.0, masked=1.0))
    video = torch.rand(3, 3, 1, 4, 4)
    out = Reconstruction(torch.cat([video, video[:1]]), torch.zeros(4, 1, 1, 1), torch.tensor(0.0))
    found = Objective(config, (4, 8, 8), None).generator(0, video, out, lambda video: video)
    assert (found.terms["l1"], found.terms["masked"], found.total) == (0, 0, 0)


def test_the_accuracy_is_that_of_both_sides():
    objective = Objective(TrainConfig(DataConfig(("unused",))), (4, 8, 8), None)
    ones, logits = torch.ones(4, 3, 1, 1, 1), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0])
    terms = objective.discriminator(0, ones, ones, lambda _: logits)[1]
    assert terms["accuracy"] == (2 / 4 + 3 / 4) / 2
    assert (terms["logits_real"], terms["logits_fake"]) == (0, -0.5)


def test_clips_are_discriminated_in_the_type_of_their_reconstructions():
    objective, seen = Objective(TrainConfig(DataConfig(("unused",)), loss=LossConfig(r1=1.0)), (4, 8, 8), None), []
    real = torch.rand(2, 3, 1, 4, 4)
    with LaunchCounter() as counted:
        objective.discriminator(0, real, real.bfloat16(), lambda video: (seen.append(video), video.mean(dim=1))[1])
    (batch,) = seen
    assert batch.dtype == torch.bfloat16 and torch.equal(batch[:2], real.bfloat16()) and len(batch) == 6
    assert counted.kernels["cat"] == 1


def test_the_wavelet_loss_has_all_details_and_no_means():
    flat = torch.zeros(1, 3, 2, 8, 8)
    assert float(wavelet_l1(flat + 0.5, flat)) == 0
    odd = torch.arange(8) % 2
    for stripes in (odd.expand(8, 8), odd[:, None].expand(8, 8), (odd + odd[:, None]) % 2):
        # One of the three first-level bands has |(1 - 0) + (1 - 0)| / 2 everywhere; the second level sees a mean.
        assert float(wavelet_l1(flat + stripes, flat)) == pytest.approx(1 / 3 / 2)


def random_sources(count, first=0):
    return list(sample_generators(0, batch=5, first=first, count=count, device=torch.device("cpu")))


def test_masking_covers_the_given_fraction_of_whole_blocks():
    video = torch.ones(4, 3, 9, 16, 16)
    shown = mask_blocks(video, 0.5, (4, 8, 8), random_sources(4))
    blocks = torch.stack([shown[:, 0, t, y, x] for t in (0, 1, 5) for y in (0, 8) for x in (0, 8)], dim=1)
    assert (blocks.sum(dim=1) == 6).all()
    assert torch.equal(shown[:, :, 1:5, :8, :8].amin(dim=(2, 3, 4)), shown[:, :, 1:5, :8, :8].amax(dim=(2, 3, 4)))
    assert mask_blocks(video[:, :, :1], 0.5, (4, 8, 8), random_sources(4)).mean() == 0.5
    # Each clip has a mask of its own, the same in any micro-batch.
    assert len({tuple(row) for row in blocks.tolist()}) > 1
    assert torch.equal(mask_blocks(video[2:], 0.5, (4, 8, 8), random_sources(2, first=2)), shown[2:])


def test_blocks_of_a_mask_have_its_height_and_width():
    shown = mask_blocks(torch.ones(1, 3, 5, 8, 24), 0.5, (2, 2, 8), random_sources(1))[0, 0]
    blocks = shown[1:].unflatten(0, (2, 2)).unflatten(2, (4, 2)).unflatten(4, (3, 8)).transpose(1, 2).transpose(3, 4)
    assert torch.equal(blocks.amin(dim=(2, 4, 5)), blocks.amax(dim=(2, 4, 5)))
    assert set(shown.flatten().tolist()) == {0, 1}


def test_a_ramp_interpolates_between_its_ends():
    ramp = Ramp(begin=1.0, end=0.0, first=10, last=20)
    assert [ramp.at(step) for step in (0, 10, 15, 20, 99)] == [1, 1, 0.5, 0, 0]
    assert Ramp(begin=0.0, end=2.0, last=10, shape="cosine").at(5) == pytest.approx(1)
    assert [Ramp(begin=1.0, end=0.0, first=5, last=5).at(step) for step in (4, 5)] == [1, 0]
    assert weight_at(0.3, 7) == 0.3


def test_the_learning_rate_warms_up_and_decays():
    rates = [learning_rate(step, 100, 2.0, 0.1, 10) for step in (0, 9, 10, 55, 100)]
    assert rates == pytest.approx([0.2, 2.0, 2.0, 1.1, 0.2])


def test_the_learning_rate_is_constant_before_it_decays_at_the_end_of_the_run():
    config = OptimizerConfig(lr=2.0, warmup_steps=10, final_lr=0.1, schedule="wsd", decay=0.2)
    assert [config.lr_at(step, 100) for step in (0, 9, 10, 79, 80, 90, 100)] == pytest.approx(
        [0.2, 2, 2, 2, 2, 1.1, 0.2]
    )
    assert [config.lr_at(step, 200) for step in (159, 180, 200)] == pytest.approx([2, 1.1, 0.2])
    assert OptimizerConfig(lr=2.0, warmup_steps=90, schedule="wsd", decay=1.0).lr_at(95, 100) == pytest.approx(1)


def test_the_discriminator_has_a_schedule_of_its_own(monkeypatch):
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=4)
    config = TrainConfig(
        DataConfig(("unused",)),
        steps=20,
        loss=LossConfig(adversarial_start=12, discriminator_warmup=2),
        generator=optimizer,
        discriminator_optimizer=optimizer,
    )
    rates: dict[str, float] = {}
    monkeypatch.setattr(trainer, "set_lr", rates.__setitem__)
    engines = {"_generator_engine": "generator", "_discriminator_engine": "discriminator"}
    for step, expected in ((0, 0.25), (3, 0.25), (10, 0.25), (11, 0.5), (14, 1.0), (17, 0.5), (19, 0.066987)):
        Trainer._set_learning_rates(SimpleNamespace(config=config, **engines), step)
        assert rates["discriminator"] == pytest.approx(expected, abs=1e-6)
        assert rates["generator"] == optimizer.lr_at(step, 20)
    engine = SimpleNamespace(get_global_grad_norm=lambda: torch.tensor(2.0))
    engines = {"_generator_engine": engine, "_discriminator_engine": engine}
    # After the last step without the discriminator, and the first one with it.
    for done, names in ((10, {"grad_norm"}), (11, {"grad_norm", "grad_norm_discriminator"})):
        metrics = Trainer.optimizer_metrics(SimpleNamespace(config=config, progress=Progress(done), **engines))
        assert metrics == {"lr": optimizer.lr_at(done - 1, 20)} | dict.fromkeys(names, 2.0)


def test_a_discriminator_that_is_nearly_always_right_is_reported():
    silent = SimpleNamespace(alarms=lambda *_: {})
    loop = SimpleNamespace(trainer=SimpleNamespace(usage=silent), throughput=silent)
    assert not _TrainingLoop._alarms(loop, {"accuracy": 0.97}, 5) and not _TrainingLoop._alarms(loop, {}, 5)
    assert "nearly every patch" in _TrainingLoop._alarms(loop, {"accuracy": 0.99}, 5)["balance"]


def test_the_guard_skips_spikes_and_nan_and_requests_a_rollback():
    guard = LossSpikeGuard(GuardConfig(spike=3.0, patience=2))
    guard.restore([1.0] * 30)
    assert guard.check(2.9) is None
    assert guard.check(3.1) == Skipped("its loss is 3.1, the recent median 1")
    assert guard.check(1.0) is None
    assert guard.losses == [1.0] * 30 + [2.9, 1.0]
    assert guard.check(math.nan) == Skipped("its loss is nan")
    assert guard.check(math.inf) == Skipped("its loss is inf")
    with pytest.raises(RollbackNeeded, match="3 consecutive batches"):
        guard.check(math.nan)
    guard.restore([2.0])
    assert guard.losses == [2.0]
    assert guard.check(math.nan) == Skipped("its loss is nan"), "a rollback starts the count anew"


def test_the_guard_compares_with_the_median_of_the_last_losses():
    guard = LossSpikeGuard(GuardConfig(spike=3.0))
    guard.restore([1.0] * 18 + [50.0])
    # Too few to say what is usual.
    assert guard.check(9.0) is None
    assert guard.check(9.0) == Skipped("its loss is 9, the recent median 1")
    guard.restore([1.0] * 150)
    assert len(guard.losses) == 100


def test_the_randomness_of_a_micro_batch_depends_on_its_position():
    def draw(*position: int) -> float:
        seed_micro_batch(*position)
        return float(torch.rand(1))

    positions = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [draw(*position) for position in positions]
    assert len(set(drawn)) == len(positions) and [draw(*position) for position in positions] == drawn


def test_a_buffer_snapshot_restores_buffers():
    module = nn.BatchNorm1d(2)
    buffers = BufferSnapshot(module)
    buffers.save()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module(torch.randn(4, 2))
    assert not torch.equal(module.running_mean, before["running_mean"])
    buffers.restore()
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_a_loss_that_starts_later_is_averaged_over_the_steps_that_have_it():
    context, terms = DistributedContext(0, 1, torch.device("cpu")), MeanTerms()
    for step in range(4):
        late = {"adversarial": torch.tensor(2.0 + step)} if step >= 2 else {}
        terms.add({"loss": torch.tensor(float(step))} | late)
    assert terms.count == 4
    assert terms.compute_and_reset(context) == {"loss": 1.5, "adversarial": 4.5}
    assert terms.count == 0


@pytest.mark.parametrize("pixel", [1.5, -1.5, math.nan])
def test_pixels_out_of_range_on_one_rank_are_noticed_on_all(pixel):
    video, guard = torch.zeros(1, 3, 1, 2, 2), LossSpikeGuard(GuardConfig())
    loss = torch.tensor(1.0)

    def judge(video, mean):
        trainer = SimpleNamespace(stop_requested=bool, stop_agreed=False, guard=guard, _mean=mean)
        return Trainer._check_batch(trainer, video, loss, None, {})

    good = []
    assert judge(video, lambda values: (good.append(values), values)[1]) is None
    skipped = judge(torch.full_like(video, pixel), lambda values: (values + good[0]) / 2)
    assert skipped == Skipped("its pixels are not in [-1, 1]")
