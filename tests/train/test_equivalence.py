"""DeepSpeed runs have the losses of a plain PyTorch loop, for all ZeRO stages and numbers of ranks."""

import re

import pytest
import torch
from torch.nn import functional as F

from vidvq.data import ClipDataset, DataConfig
from vidvq.formats.checkpoint import read_checkpoint
from vidvq.model import Discriminator, DiscriminatorConfig, TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.pixels import to_video
from vidvq.model.quantize import FSQConfig, QuantizerConfig, VQConfig


def plain_losses(clips_dir, steps: int) -> tuple[list[float], list[float]]:
    """Losses of generator and discriminator by a loop of plain torch."""
    torch.manual_seed(0)
    stack = StackConfig((16, 24), (1, 1))
    quantizer = QuantizerConfig(3, FSQConfig(levels=(5, 5, 5)), VQConfig(size=32, warmup=0))
    tokenizer = VideoTokenizer(
        TokenizerConfig(encoder=stack, decoder=DecoderConfig(stack.channels, stack.blocks), quantizer=quantizer)
    )
    discriminator = Discriminator(DiscriminatorConfig(channels=8, layers=1))
    both = [
        torch.optim.AdamW(net.parameters(), 1e-3, (0.9, 0.99), weight_decay=0) for net in (tokenizer, discriminator)
    ]
    data = ClipDataset(DataConfig((str(clips_dir),), batch_size=4, num_frames=5, crop=32, shuffle=256), seed=0)
    told: tuple[list[float], list[float]] = ([], [])
    means = [0.0, 0.0]
    for step in range(steps):
        torch.manual_seed(step)
        video = to_video(data[step, 0])
        out = tokenizer(video)
        back = out.reconstruction
        loss = F.l1_loss(back, video) + 0.25 * out.commitment_loss - 0.1 * discriminator(back).mean()
        told[0].append(float(loss.detach()))
        both[0].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        real, fake = discriminator(torch.cat([video, back.detach()])).chunk(2)
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        told[1].append(float(hinge.detach()))
        penalty = F.relu(real - means[1]).square().mean() + F.relu(means[0] - fake).square().mean()
        means = [0.99 * mean + 0.01 * float(new.detach().mean()) for mean, new in zip(means, (real, fake), strict=True)]
        both[1].zero_grad()
        (hinge + 0.01 * penalty).backward()
        torch.nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
    return told


@pytest.fixture(scope="module")
def plain(clips_dir) -> tuple[list[float], list[float]]:
    return plain_losses(clips_dir, 6)


def test_one_process_trains_like_plain_torch(plain, whole):
    assert whole.column("loss") == pytest.approx(plain[0], rel=1e-5)
    assert whole.column("discriminator") == pytest.approx(plain[1], rel=1e-5)


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2)), 3])
def test_every_zero_stage_trains_like_plain_torch(plain, train, tmp_path, stage):
    run = train(tmp_path / "run", f"zero_stage={stage}")
    assert run.column("loss") == pytest.approx(plain[0], rel=1e-5)
    assert run.column("discriminator") == pytest.approx(plain[1], rel=1e-5)


# Layers as a trainer on a GPU has them.
GPU_LAYERS = """
from vidvq.model import discriminator
from vidvq.model.training_layers import use_training_layers
from vidvq.train import trainer
build = trainer.build_networks
def build_for_gpu(config):
    networks = build(config)
    use_training_layers(networks[0])
    return networks
trainer.build_networks = build_for_gpu
# FLOPs are counted on another device.
discriminator.prefers_channels_last = lambda x: x.device.type == "cpu"
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [("zero_stage=0",), ("zero_stage=3", "checkpoint_activations=true")])
def test_the_layers_of_a_gpu_train_like_plain_torch(plain, train, tmp_path, settings):
    run = train(tmp_path / "run", *settings, patch=GPU_LAYERS)
    assert run.column("loss") == pytest.approx(plain[0], rel=1e-5)
    assert run.column("discriminator") == pytest.approx(plain[1], rel=1e-5)


# Prints the identity of the memory in which a rank caches decoded clips.
CACHE = """
import os
import sys
from vidvq.data.clip_cache import ClipCache
class Printing(ClipCache):
    def __init__(self, num_clips, capacity, file):
        super().__init__(num_clips, capacity, file)
        print("cache", os.fstat(file.fileno()).st_ino, file=sys.stderr)
import vidvq.data.dataset
vidvq.data.dataset.ClipCache = Printing
"""


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 3)), 2])
def test_two_ranks_train_like_one_with_the_whole_batch(whole, train, tmp_path, stage, close):
    run = train(tmp_path / "run", f"zero_stage={stage}", ranks=2, patch=CACHE)
    caches = re.findall(r"^cache (\d+)$", run.stderr, re.M)
    assert len(caches) == 2 and len(set(caches)) == 1
    assert run.column("loss") == close(whole.column("loss"))
    assert run.column("discriminator") == close(whole.column("discriminator"))
    assert run.column("usage_temporal") == whole.column("usage_temporal")
    one, other = read_checkpoint(whole.out).tensors, read_checkpoint(run.out).tensors
    # By the step size where a gradient's sign was a matter of rounding, and that is rare.
    apart = torch.cat([(torch.from_numpy(one[name]) - torch.from_numpy(other[name])).abs().flatten() for name in one])
    assert float(apart.mean()) < 2e-5, float(apart.mean())


def test_the_batch_entropy_and_the_masks_are_those_of_the_batch_of_all_ranks(train, tmp_path, close):
    bits = "model.quantizer={dim: 4, spatial: {kind: lfq, size: 16, temperature: 1.0}, temporal: {kind: lfq, "
    books = f"{bits}size: 16, temperature: 1.0, spherical: true}}}}"
    masked = ("loss={l1: 1.0, commitment: 0.25, adversarial: 0.1, lecam: 0.01, masked: 0.5}", "mask.clips=1.0")
    one, two = (train(tmp_path / str(ranks), books, "zero_stage=2", *masked, ranks=ranks) for ranks in (1, 2))
    assert two.column("masked") == close(one.column("masked"))
    assert two.column("commitment") == close(one.column("commitment"))
    assert two.column("loss") == close(one.column("loss"))


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_batch(whole, train, tmp_path, close):
    # Codebooks that follow averages are moved pass by pass; a grid has none.
    grid = "model.quantizer={dim: 3, spatial: {kind: fsq, levels: [5, 5, 5]}, temporal: null}"
    at_once, passes = (
        train(tmp_path / "a", grid),
        train(tmp_path / "b", grid, "data.micro_batch_size=1", "zero_stage=2"),
    )
    assert passes.column("loss") == close(at_once.column("loss"))
    # Not the discriminator's LeCAM, whose means move pass by pass.
    assert passes.column("discriminator") == pytest.approx(at_once.column("discriminator"), rel=1e-3)


@pytest.mark.slow
def test_activation_checkpointing_changes_nothing(whole, train, tmp_path):
    run = train(tmp_path / "run", "checkpoint_activations=true", "zero_stage=2")
    assert run.column("loss") == pytest.approx(whole.column("loss"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [("precision=bf16", "zero_stage=2"), pytest.param(("precision=bf16", "zero_stage=3"), marks=pytest.mark.slow)],
)
def test_bf16_stays_near(whole, train, tmp_path, overrides):
    run = train(tmp_path / "run", *overrides)
    # The first step's loss is of the same weights: what differs is rounding.
    assert run.column("loss")[0] == pytest.approx(whole.column("loss")[0], rel=0.02)
    assert run.column("loss") == pytest.approx(whole.column("loss"), rel=0.2)


@pytest.mark.slow
def test_fp16_trains_like_fp32_once_its_loss_scale_settles(train, tmp_path):
    half, full = (train(tmp_path / name, f"precision={name}", "steps=40") for name in ("fp16", "fp32"))
    assert half.column("loss")[-1] == pytest.approx(full.column("loss")[-1], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("generator.fused=true",),
        ("generator.offload=true", "zero_stage=2"),
        ("generator.fused=true", "zero_stage=3"),
        ("generator.offload=true", "zero_stage=3"),
    ],
)
def test_other_implementations_of_adam_agree(whole, train, tmp_path, overrides, close):
    run = train(tmp_path / "run", *overrides)
    assert run.column("loss") == close(whole.column("loss"))
