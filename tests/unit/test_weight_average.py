"""Moving averages of weights."""

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
