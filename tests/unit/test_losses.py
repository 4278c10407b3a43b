"""The loss terms against their formulas."""

import math

import pytest
import torch

from vidvq.train.losses import LeCam, code_usage, hinge_discriminator, hinge_generator


def test_hinge_loss_is_zero_beyond_the_margins():
    assert hinge_discriminator(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -5.0])) == 0
    assert hinge_discriminator(torch.tensor([0.0]), torch.tensor([0.0])) == 1
    assert hinge_generator(torch.tensor([1.0, 3.0])) == -2


def test_lecam_pulls_towards_the_other_side():
    lecam = LeCam(decay=0.5)
    penalty = lecam(torch.tensor([2.0]), torch.tensor([-2.0]))
    assert (lecam.real, lecam.fake) == (1.0, -1.0)
    assert float(penalty) == pytest.approx((2 + 1) ** 2 + (1 + 2) ** 2)


def test_code_usage_counts_codes_and_their_spread():
    used, perplexity = code_usage(torch.tensor([0, 1, 2, 3]), 8)
    assert used == 0.5
    assert perplexity == pytest.approx(4)
    assert code_usage(torch.tensor([5, 5, 5]), 8)[1] == pytest.approx(1)
    assert not math.isnan(code_usage(torch.zeros(0, dtype=torch.long), 8)[1])
