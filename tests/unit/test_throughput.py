"""FLOP counts of a step, and throughput metrics."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vidvq.data import DataConfig
from vidvq.model import Discriminator, DiscriminatorConfig, TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.groups import replicate_first_frame
from vidvq.model.layers import TemporalCache, TemporalConv
from vidvq.train import TrainConfig
from vidvq.train.config import LossConfig, MaskConfig
from vidvq.train.throughput import Throughput
from vidvq.training.distributed import DistributedContext

SHAPE = (2, 3, 5, 32, 32)
STACK = StackConfig((8, 8), (1, 1))
CONFIG = TrainConfig(
    DataConfig({"a": 2.0, "b": 1.0}),
    model=TokenizerConfig(encoder=STACK, decoder=DecoderConfig(STACK.channels, STACK.blocks)),
    discriminator=DiscriminatorConfig(channels=4, layers=1),
    loss=LossConfig(adversarial=0.1, adversarial_start=7, discriminator_warmup=2),
)


def count(step) -> int:
    counting.append(True)
    with FlopCounterMode(display=False) as counter:
        step()
    counting.clear()
    return counter.get_total_flops()


@pytest.fixture(autouse=True)
def counted_convolutions(monkeypatch):
    """Temporal convolutions as one operator, which PyTorch counts, in what these tests count."""

    def forward(self, x, cache):
        return self.convolve(torch.cat([*cache.prefix(x), x], dim=1)) if counting else original(self, x, cache)

    original = TemporalConv.forward
    monkeypatch.setattr(TemporalConv, "forward", forward)


counting: list[bool] = []


@pytest.fixture
def throughput() -> Throughput:
    return Throughput(CONFIG, DistributedContext(0, 3, torch.device("cpu")))


def test_flops_count_forward_and_backward(throughput):
    tokenizer, discriminator = VideoTokenizer(CONFIG.model), Discriminator(CONFIG.discriminator)
    # With a gradient of the input, since the rule counts one for every layer, the first included.
    video = torch.rand(SHAPE).requires_grad_()
    groups = replicate_first_frame(video, 4)
    tokenizer_step = count(
        lambda: tokenizer.decoder(tokenizer.encoder(groups, TemporalCache()), TemporalCache()).sum().backward()
    )
    assert throughput.flops(SHAPE, 4) == tokenizer_step
    discriminator_step = count(lambda: [discriminator(video).sum().backward() for _ in range(2)])
    assert throughput.flops(SHAPE, 5) - throughput.flops(SHAPE, 4) == discriminator_step
    frozen = Discriminator(CONFIG.discriminator).requires_grad_(False)
    assert throughput.flops(SHAPE, 7) - throughput.flops(SHAPE, 6) == count(lambda: frozen(video).sum().backward())


def test_flops_count_what_is_frozen_repeated_or_added():
    def flops(step: int = 0, **changes: Any) -> int:
        return Throughput(replace(CONFIG, **changes), DistributedContext(0, 1, torch.device("cpu"))).flops(SHAPE, step)

    tokenizer, latents = VideoTokenizer(CONFIG.model), torch.rand(2, 16, 2, 4, 4)
    with torch.no_grad():
        decoder = count(lambda: tokenizer.decoder(latents, TemporalCache()))
    encoder = flops() // 3 - decoder
    assert flops(train_only="decoder", start_from="run") == encoder + 3 * decoder
    # One of two clips is encoded and decoded again.
    masked = replace(CONFIG.loss, masked=0.5)
    assert flops(loss=masked, mask=MaskConfig(clips=0.5)) == 1.5 * flops()
    plain, more = CONFIG.loss, replace(CONFIG.loss, r1=0.1, adaptive=True)
    trained = (flops(6, loss=plain) - flops(4, loss=plain)) // 2
    assert flops(6, loss=more) - flops(6, loss=plain) == trained
    used = flops(7, loss=plain) - flops(6, loss=plain)
    assert flops(7, loss=more) - flops(6, loss=more) == 2 * used


def test_a_measurement_covers_the_time_since_the_last_one(throughput, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("vidvq.train.throughput.monotonic", lambda: clock[0])
    throughput.reset()
    for _ in range(2):
        throughput.record(SHAPE, wait_s=0.5, step=0)
        throughput.finish_step()
    clock[0] += 4
    flops = 2 * throughput.flops(SHAPE, 0)
    expected = {"step_s": 2.0, "data_wait": 0.25, "frames_per_s": 2 * 2 * 5 * 3 / 4, "tflops": flops / 4e12}
    assert throughput.measure() == pytest.approx(expected)
    # The workers may have been starting.
    assert not throughput.alarms(expected)
    throughput.measure()
    assert (
        "25% of the time is spent waiting for data; the data workers reach 15 frames/s"
        in (throughput.alarms(expected)["data"])
    )
    assert not throughput.alarms(expected | {"data_wait": 0.05})
    # 100,000 steps.
    assert throughput.alarms(expected | {"step_s": 2.5e-3}) and not throughput.alarms(expected | {"step_s": 2e-3})
    throughput.reset()
    clock[0] += 1
    assert throughput.measure()["tflops"] == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200 NVL", 835), ("Tesla T4", None)],
)
def test_the_peak_is_that_of_the_device(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    config, context = replace(CONFIG, precision="bf16"), DistributedContext(0, 1, torch.device("cuda", 0))
    assert Throughput(config, context)._peak() == (peak and peak * 1e12)
