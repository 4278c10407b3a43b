"""Codebook usage, and the warning about low usage."""

import math

import numpy as np
import pytest
import torch

from vidvq.metrics.codes import codebook_usage
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import QuantizerConfig, VQConfig
from vidvq.train.codebook_usage import UsageCounter
from vidvq.training.distributed import DistributedContext


def test_low_usage_is_reported_once_codes_are_initialized():
    stack = StackConfig((8, 8), (1, 1))
    books = QuantizerConfig(4, VQConfig(size=32, warmup=20), VQConfig(size=64, warmup=30))
    usage = UsageCounter(
        VideoTokenizer(
            TokenizerConfig(encoder=stack, decoder=DecoderConfig(stack.channels, stack.blocks), quantizer=books)
        ),
        every=10,
        context=DistributedContext(0, 1, torch.device("cpu")),
    )
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


def test_usage_counts_codes_and_their_perplexity():
    use = codebook_usage("spatial", 8, np.array([1, 1, 1, 1, 0, 0, 0, 0]))
    assert (use.used, use.share, use.tokens) == (4, 0.5, 4)
    assert use.perplexity == pytest.approx(4)
    assert codebook_usage("spatial", 3, np.array([0, 3, 0])).perplexity == pytest.approx(1)
    # Codes that do not occur may be left out.
    assert codebook_usage("spatial", 8, np.ones(4, int)) == use
    assert not math.isnan(codebook_usage("spatial", 8, np.zeros(8)).perplexity)
