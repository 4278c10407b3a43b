"""What a training batch draws and its gradient are the same for any number of processes and micro-batches."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.helpers.generators import make_card
from vidvq.data import TokenDataConfig, TokenDataset
from vidvq.errors import UsageError
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.config import GenerateTrainConfig, PixelConfig, TaskConfig
from vidvq.generate.training import examples, trainer
from vidvq.generate.training.examples import Columns, ExampleDataset
from vidvq.pretrained import load_tokenizer
from vidvq.training.distributed import DistributedContext

BATCH, NUMBERS = 4, range(3)


@pytest.fixture(scope="module")
def make_examples(tokens_dir, clips_dir, checkpoint_dir):
    """Return the micro-batches of all processes in the order of their samples, as (rank, micro-step, examples)."""
    card, tokenizer = make_card(read_tokenizer_card(tokens_dir)), load_tokenizer(checkpoint_dir)[0]

    def make(number, ranks, micro_batch):
        data = TokenDataConfig((str(tokens_dir),), batch_size=BATCH, micro_batch_size=micro_batch, latents=3, workers=0)
        pixels = PixelConfig((str(clips_dir),), str(checkpoint_dir))
        config = GenerateTrainConfig(data, tasks=TaskConfig(0, 1, 1, 1), pixels=pixels)
        found = []
        for micro_step in range(data.accumulation(ranks)):
            for rank in range(ranks):
                tokens = TokenDataset(data, config.seed, rank, ranks)
                dataset = ExampleDataset(config, card, tokens, Columns({}, {}, {}), tokenizer)
                found.append((rank, micro_step, dataset[number, micro_step]))
        return config, found

    return make


class Engine(nn.Module):
    """Records the mask of each micro-batch, and which samples keep their conditions; the loss of a code is its index.

    Attributes:
        gradient: sum over micro-batches.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.masks, self.kept, self.gradient = [], [], 0.0

    def forward(self, codes, mask, two_streams, kept, **conditions):
        self.masks.append(mask)
        self.kept.append(kept)
        return self.weight * codes[mask]

    def backward(self, loss):
        self.gradient += float(torch.autograd.grad(loss, self.weight)[0])

    def step(self):
        pass


def drawn(monkeypatch, config, number, ranks, examples, hidden=None):
    """Return the task, the gradient, and the hidden pixels, masks and kept conditions of a batch.

    ``hidden`` is the number of hidden codes of the batch, which several ranks would agree on.
    """
    monkeypatch.setattr(trainer, "set_lr", lambda engine, lr: None)
    monkeypatch.setattr(trainer.GeneratorTrainer, "__init__", lambda self: None)
    engine, tasks, visible = Engine(), set(), []
    for rank, micro_step, each in examples:
        process = trainer.GeneratorTrainer()
        process.config, process._engine = config, engine
        process._drawn_for = -1
        process.context = DistributedContext(rank, ranks, torch.device("cpu"))
        process.guard = SimpleNamespace(check=lambda loss: None)
        process.progress = SimpleNamespace(step=number, batch=number)
        share = None if ranks == 1 else hidden / len(examples)

        def mean(tensor, share=share):
            return tensor.detach() if share is None else tensor.new_tensor(share)

        monkeypatch.setattr(trainer, "all_reduce_mean", mean)
        process.forward_backward(each, micro_step)
        tasks.add(each.task)
        visible += [] if each.blanked is None else [each.blanked.visible]
    (task,) = tasks
    tensors = [torch.cat(parts) for parts in (visible, engine.masks, engine.kept) if parts]
    return task, engine.gradient / len(examples), tensors


def test_a_batch_draws_the_same_however_it_is_divided(monkeypatch, make_examples):
    seen = set()
    for number in NUMBERS:
        config, whole = make_examples(number, 1, BATCH)
        task, gradient, tensors = drawn(monkeypatch, config, number, 1, whole)
        hidden = int(tensors[-2].sum())
        for ranks, micro_batch in ((2, 2), (1, 2), (2, 1)):
            config, parts = make_examples(number, ranks, micro_batch)
            found_task, found_gradient, found = drawn(monkeypatch, config, number, ranks, parts, hidden)
            assert found_task == task and found_gradient == pytest.approx(gradient, rel=1e-5)
            assert len(found) == len(tensors) and all(map(torch.equal, found, tensors))
        seen.add(task)
    assert seen == {"predict", "interpolate", "fill"}


def test_clips_of_another_size_than_their_tokens_are_refused(monkeypatch, tokens_dir, clips_dir, checkpoint_dir):
    index = examples.read_clip_index([str(clips_dir)])
    monkeypatch.setattr(examples, "read_clip_index", lambda _, name: replace(index, height=2 * index.height))
    card, (tokenizer, _) = make_card(read_tokenizer_card(tokens_dir)), load_tokenizer(checkpoint_dir)
    data = TokenDataConfig((str(tokens_dir),), batch_size=BATCH, latents=3)
    config = GenerateTrainConfig(data, tasks=TaskConfig(fill=1), pixels=PixelConfig((str(clips_dir),)))
    with pytest.raises(UsageError, match="pixels.clips has 9 frames of 40x64 .* have a grid of 3x4x5"):
        ExampleDataset(config, card, TokenDataset(data, 0), Columns({}, {}, {}), tokenizer)
