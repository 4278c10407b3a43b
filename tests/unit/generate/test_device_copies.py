"""Copies of a training step to a GPU, which must not wait for it, counted without one."""

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from vidvq.data import TokenBatch
from vidvq.generate.blanking import BlankedVideo
from vidvq.generate.network import transformer
from vidvq.generate.network.block import TransformerConfig
from vidvq.generate.network.transformer import VideoTransformer
from vidvq.generate.training import trainer
from vidvq.generate.training.examples import Examples
from vidvq.generate.training.trainer import compute_loss
from vidvq.model.device_copy import copy_to_device
from vidvq.model.launches import LaunchCounter

SHAPE = (2, 3, 2, 2)


@pytest.fixture
def examples():
    codes = torch.zeros(SHAPE, dtype=torch.int64)
    tokens = TokenBatch(["a", "b"], codes, codes.clone(), torch.arange(3).expand(2, 3).contiguous())
    blanked = BlankedVideo(codes.clone(), torch.ones(SHAPE))
    return Examples(tokens, "fill", torch.ones(2, dtype=torch.int64), torch.zeros(2, 3, 2), blanked)


@pytest.fixture
def pinned(monkeypatch):
    """Tensors that were pinned, in order."""
    found = []

    def pin(self, device=None):
        found.append(self)
        return self.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return found


def test_the_loader_pins_every_tensor_of_a_micro_batch(examples, pinned):
    pin_memory(examples)
    tokens, blanked = examples.tokens, examples.blanked
    expected = [tokens.codes, tokens.ids, tokens.latents, examples.labels, examples.actions, *blanked]
    assert len(pinned) == len(expected) and all(map(torch.Tensor.is_set_to, pinned, expected))


def test_what_is_copied_to_a_gpu_is_pinned_before(pinned, monkeypatch):
    copied = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *how, **more: copied.append((self, how, more)))
    tensor, cuda = torch.zeros(3), torch.device("cuda")
    copy_to_device(tensor, cuda)
    assert pinned[0] is tensor and copied[0][0] is not tensor
    assert copied[0][1:] == ((cuda,), {"non_blocking": True})
    # A CPU has no other memory, and what is on a device already is not pinned.
    copy_to_device(tensor, torch.device("cpu"))
    copy_to_device(torch.zeros(3, device="meta"), cuda)
    assert len(pinned) == 1


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_a_training_step_copies_nothing_otherwise(examples, objective, monkeypatch):
    copied = [0]

    def count(tensor, device):
        copied[0] += tensor.nbytes if tensor.device.type == "cpu" else 0
        return copy_to_device(tensor, device)

    monkeypatch.setattr(trainer, "copy_to_device", count)
    monkeypatch.setattr(transformer, "copy_to_device", count)
    with torch.device("meta"):
        network = VideoTransformer(
            TransformerConfig(24, 1, 2, copy_radius=1), (11, 13), labels=3, actions=2, sees_blanked=True
        )
    with LaunchCounter() as counted:
        compute_loss(network, examples, objective, torch.ones(SHAPE, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    assert 0 < copied[0] == counted.bytes_to_device
