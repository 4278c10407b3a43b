"""Bits per token on held-out tokens during training."""

import pytest
import torch

from tests.helpers.generators import make_card
from vidvq.data import TokenDataConfig
from vidvq.formats.token_shard import read_tokenizer_card
from vidvq.generate.config import GenerateTrainConfig, HeldOutConfig
from vidvq.generate.network.build import build_network
from vidvq.generate.training import held_out
from vidvq.generate.training.held_out import HeldOutLoss
from vidvq.training.distributed import DistributedContext
from vidvq.training.training_state import Progress


def test_it_is_that_of_all_samples_in_batches_no_larger_than_those_of_training(monkeypatch, tokens_dir):
    card = make_card(read_tokenizer_card(tokens_dir))
    weights, sizes, sums = build_network(card, 1).state_dict(), [], []
    measured = held_out.position_nats

    def measure(network, objective, codes, *more):
        sizes.append(len(codes))
        return measured(network, objective, codes, *more)

    def add_up(total):
        sums.append(total)
        return torch.stack(sums).sum(0)

    monkeypatch.setattr(held_out, "position_nats", measure)
    monkeypatch.setattr(held_out, "all_reduce_sum", add_up)

    def bits(micro_batch, ranks=1):
        data = TokenDataConfig((str(tokens_dir),), batch_size=8, micro_batch_size=micro_batch, latents=3)
        config = GenerateTrainConfig(data, held_out=HeldOutConfig(str(tokens_dir), samples=5))
        sizes.clear()
        sums.clear()
        for rank in range(ranks):
            last = HeldOutLoss(config, card, DistributedContext(rank, ranks, torch.device("cpu"))).measure(weights)
        return last

    whole = bits(None)
    assert sizes == [5] and 5 < whole < 7
    assert bits(2) == pytest.approx(whole, rel=1e-6) and sizes == [2, 2, 1]
    assert bits(1, ranks=4) == pytest.approx(whole, rel=1e-6) and sizes == [1] * 5


def test_the_best_checkpoint_is_the_first_with_the_lowest_bits():
    progress = Progress()
    for step, (bits, best) in enumerate([(3.0, True), (4.0, False), (2.0, True), (2.0, False)]):
        progress.step = step
        assert progress.record_score(-bits) == best
    assert progress.best == (-2.0, 2)
