"""Moving averages of weights."""

import pytest
import torch
from torch import nn

from vidvq.training.ema import WeightAverage


def test_frozen_tensors_keep_every_bit():
    module = nn.Module()
    module.encoder, module.decoder = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.encoder.weight.copy_(torch.tensor([[-0.0, 0.1]]))
    before = module.encoder.weight.detach().clone()
    average = WeightAverage(module, 0.9, frozen=("encoder.",))
    with torch.no_grad():
        module.decoder.weight.add_(1)
    average.update()
    found = average.state_dict()
    assert torch.equal(found["encoder.weight"].view(torch.int32), before.view(torch.int32))
    assert not torch.equal(found["decoder.weight"], module.decoder.weight)


def test_the_average_forgets_the_initial_weights_quickly():
    module = nn.Linear(1, 1, bias=False)
    for decay, shares in ((0.99, [2 / 11, 3 / 12]), (0.2, [2 / 11, 0.2])):
        nn.init.constant_(module.weight, 1.0)
        average, expected = WeightAverage(module, decay), 1.0
        for value, share in zip((5.0, 7.0), shares, strict=True):
            nn.init.constant_(module.weight, value)
            average.update()
            expected = share * expected + (1 - share) * value
        assert float(average.state_dict()["weight"]) == pytest.approx(expected)
        assert average.updates == 2
