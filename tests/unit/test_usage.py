"""Codebook usage, and the warning about low usage."""

import math
import pickle

import numpy as np
import pytest
import torch

from vidvq.codebook import Codebook
from vidvq.formats.token_shard import TokenizerCard
from vidvq.metrics import codes
from vidvq.metrics.codes import CodeCounts, codebook_usage
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import QuantizerConfig, ResidualConfig, VQConfig
from vidvq.train.codebook_usage import UsageCounter
from vidvq.training.distributed import DistributedContext

# Two codebooks of the largest size.
CARD = TokenizerCard("t", "d", (Codebook("spatial", 1 << 24, 0), Codebook("temporal", 1 << 24, 1 << 24)), 4, 8, {})


def make_counter(*codebooks) -> UsageCounter:
    stack = StackConfig((8, 8), (1, 1))
    decoder = DecoderConfig(stack.channels, stack.blocks)
    config = TokenizerConfig(encoder=stack, decoder=decoder, quantizer=QuantizerConfig(4, *codebooks))
    return UsageCounter(VideoTokenizer(config), every=10, context=DistributedContext(0, 1, torch.device("cpu")))


# The layers of the latter warm up one after another.
@pytest.mark.parametrize(
    "temporal", [VQConfig(size=64, warmup=30), ResidualConfig(depth=2, layer=VQConfig(size=8, warmup=15))]
)
def test_low_usage_is_reported_once_codes_are_initialized(temporal):
    usage = make_counter(VQConfig(size=32, warmup=20), temporal)
    codes = torch.arange(3 * 32 * 32).view(1, 3, 32, 32) % 32
    codes[:, 1:] %= 4
    usage.add(codes)
    metrics = usage.measure()
    assert metrics["usage_spatial"] == 1
    assert metrics["usage_temporal"] == 4 / 64
    assert metrics["dead_temporal"] == 60
    assert not usage.alarms(metrics, low=0.5, step=39)
    told = usage.alarms(metrics, low=0.5, step=40)
    assert list(told) == ["temporal"]
    assert "only 6% of the 64 temporal codes" in told["temporal"]
    # Of few tokens, most codes have none.
    assert not usage.alarms(metrics | {"tokens_temporal": 639.0}, low=0.5, step=40)


def test_usage_counts_codes_and_their_perplexity():
    use = codebook_usage("spatial", 8, np.array([1, 1, 1, 1, 0, 0, 0, 0]))
    assert (use.used, use.share, use.tokens) == (4, 0.5, 4)
    assert use.perplexity == pytest.approx(4)
    assert codebook_usage("spatial", 3, np.array([0, 3, 0])).perplexity == pytest.approx(1)
    # Codes that do not occur may be left out.
    assert codebook_usage("spatial", 8, np.ones(4, int)) == use
    assert not math.isnan(codebook_usage("spatial", 8, np.zeros(8)).perplexity)


def test_counts_of_parts_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(codes, "_WAITING", 30)
    random = np.random.default_rng(0)
    grids = [random.integers(0, 40, (3, 4, 4)).astype(np.uint32) for _ in range(10)]
    whole, *parts = (CodeCounts(CARD) for _ in range(3))
    for index, grid in enumerate(grids):
        whole.add(grid)
        parts[index % 2].add(grid)
    merged = pickle.loads(pickle.dumps(parts[0]))
    merged.merge(parts[1])
    assert merged.use() == whole.use()
    for index, tokens in enumerate((np.stack(grids)[:, :1], np.stack(grids)[:, 1:])):
        counts = np.bincount(tokens.ravel(), minlength=40)
        assert whole.use()[index] == codebook_usage(CARD.codebooks[index].name, 1 << 24, counts)
    merged.reset(1)
    assert [book.tokens for book in merged.use()] == [160, 0]


def test_counts_of_a_large_codebook_are_as_large_as_the_codes_that_occur():
    counted = CodeCounts(CARD)
    counted.add(np.arange(48, dtype=np.uint32).reshape(3, 4, 4) + (1 << 23))
    assert len(pickle.dumps(counted)) < 4000
    assert counted.entropy_bits(np.full((1, 4, 4), 1 << 23)) == pytest.approx(16 * 4)


def test_counts_are_saved_without_the_codes_that_do_not_occur():
    books = QuantizerConfig(4, VQConfig(size=32), VQConfig(size=1 << 16))
    stack = StackConfig((8, 8), (1, 1))
    decoder = DecoderConfig(stack.channels, stack.blocks)
    tokenizer = VideoTokenizer(TokenizerConfig(encoder=stack, decoder=decoder, quantizer=books))
    usage, restored = (UsageCounter(tokenizer, 1, DistributedContext(0, 1, torch.device("cpu"))) for _ in range(2))
    usage.add(torch.randint(0, 32, (2, 3, 4, 4)))
    usage.finish_step(1)
    usage.add(torch.randint(0, 32, (2, 3, 4, 4)))
    state = usage.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) <= 2 * 4 * 32
    restored.add(torch.zeros(1, 3, 4, 4, dtype=torch.long))
    restored.load_state_dict(state)
    assert all(torch.equal(restored.counts[name], counts) for name, counts in usage.counts.items())


def test_usage_covers_the_last_window_and_the_current_one():
    usage = make_counter(VQConfig(size=4), None)
    tokens = []
    for step in range(1, 31):
        usage.add(torch.zeros(1, 1, 1, 1, dtype=torch.long))
        tokens.append(usage.measure()["tokens_joint"])
        usage.finish_step(step)
    # Windows of 10 steps.
    assert tokens == [*range(1, 21), *range(11, 21)]


def test_counts_are_loaded_by_one_rank():
    usage = make_counter(VQConfig(size=4), None)
    usage._context = DistributedContext(1, 2, torch.device("cpu"))
    usage.add(torch.zeros(1, 1, 1, 1, dtype=torch.long))
    usage.load_state_dict({"joint.places": torch.tensor([1]), "joint.counts": torch.tensor([3])})
    assert not usage.counts["joint"].any()


def test_training_counts_more_tokens_of_a_code_than_fp32_can():
    usage = make_counter(VQConfig(size=4), None)
    usage.counts["joint"][1, 1] = 1 << 24
    usage.add(torch.ones(1, 3, 1, 1, dtype=torch.long))
    assert usage.measure()["tokens_joint"] == (1 << 24) + 3


def test_counts_of_an_older_state_are_loaded():
    usage = make_counter(VQConfig(size=4), None)
    usage.load_state_dict({"joint.places": torch.tensor([1, 6]), "joint.counts": torch.tensor([3.0, 5.0])})
    assert usage.counts["joint"].tolist() == [[0, 3, 0, 0], [0, 0, 5, 0]]
    assert {name: value.tolist() for name, value in usage.state_dict().items()} == {
        "joint.places": [1, 6],
        "joint.counts": [3, 5],
    }
