"""Construction of a trainer changes neither files nor random states; a step waits for the device once."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from vidvq.formats.checkpoint import read_checkpoint
from vidvq.model.launches import LaunchCounter
from vidvq.model.layers import SpatialConv
from vidvq.training.config import OptimizerConfig
from vidvq.training.engine import _clip, _make_optimizer, store_channels_last

BUILD = """
import json, sys, traceback
from pathlib import Path
import torch
from vidvq import config as settings
from vidvq.model.launches import LaunchCounter
from vidvq.train import TrainConfig
from vidvq.training.distributed import init_distributed, shutdown_distributed
from vidvq.train import trainer as module
from vidvq.train.initialization import initial_state
from vidvq.train.trainer import Trainer
from deepspeed.accelerator import get_accelerator
config = settings.load(TrainConfig, settings.find_config("demo"), sys.argv[1:])
# A process by itself opens no connection, whose name would be looked up.
sys.modules["torch.distributed.rendezvous"].TCPStore = None
context = init_distributed(60)
before = torch.get_rng_state()
trainer = Trainer(config, context)
assert torch.equal(torch.get_rng_state(), before)
assert trainer.progress.step == 0
trainer.load_state(initial_state(config, None))
reads, copies, launches, walks, traces, waits = [], [], [], [], [], []
type(get_accelerator()).synchronize = lambda *given: waits.append(1)
walk, trace = torch.nn.Module._named_members, traceback.format_stack
torch.nn.Module._named_members = lambda *given, **options: (walks.append(1), walk(*given, **options))[1]
traceback.format_stack = lambda *given: (traces.append(1), trace(*given))[1]
to_host = module.to_host
module.to_host = lambda tensor: (copies.append(1), to_host(tensor))[1]
for step in range(3):
    video = torch.rand(4, 3, 5, 32, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1
    walks.clear(), traces.clear()
    with LaunchCounter() as counted:
        trainer.forward_backward(video, 0)
        trainer.finish_step()
    # On the CPU, copying a vector to the host is no operator.
    reads.append([counted.reads + len(copies), counted.constants, counted.where])
    copies.clear()
    launches.append(counted.kernels)
shutdown_distributed()
counts = [len(walks), len(traces), len(waits)]
print(json.dumps([reads, launches[-1], *counts, sum(1 for _ in trainer.tokenizer.parameters())]))
"""


ENGINE = """
import sys
import torch
from torch import nn
from vidvq import config as settings
from vidvq.train import TrainConfig
from vidvq.training.distributed import DistributedContext, init_distributed, shutdown_distributed
from vidvq.training.engine import make_engine
config = settings.load(TrainConfig, settings.find_config("demo"), sys.argv[1:])
init_distributed(60)
context = DistributedContext(0, 1, torch.device("cuda"))
torch.backends.cudnn.allow_tf32 = True
make_engine(nn.Linear(2, 2), config.generator, config, context)
print("allowed", torch.backends.cudnn.allow_tf32)
shutdown_distributed()
"""


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("bf16", True)])
def test_fp32_does_not_round_to_tf32_on_a_gpu(settings, precision, allowed):
    arguments = ["data.clips=/nowhere", *settings, f"precision={precision}"]
    done = subprocess.run([sys.executable, "-c", ENGINE, *arguments], capture_output=True, text=True, check=False)
    assert f"allowed {allowed}" in done.stdout, done.stderr


@pytest.fixture
def damaged_run(tmp_path):
    """A run that a trainer would clean up, or refuse to read."""
    out = tmp_path / "run"
    for name in ("checkpoints/.training-00000006/state.json", "checkpoints/step-00000003/training/state.json"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("damaged")
    return out


def test_construction_has_no_side_effects_and_a_step_launches_and_reads_little(settings, damaged_run, snapshot):
    before = snapshot(damaged_run)
    # Other optimizers keep their number of steps on the host, where reading it is free and looks the same here.
    fused = ["generator.fused=true", "discriminator_optimizer.fused=true"]
    arguments = ["data.clips=/nowhere", f"out={damaged_run}", *settings, *fused]
    done = subprocess.run([sys.executable, "-c", BUILD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert snapshot(damaged_run) == before
    reads, launches, walks, traces, waits, weights = json.loads(done.stdout.splitlines()[-1])
    # The first step reads what was loaded.
    assert [counts[:2] for counts in reads[1:]] == [[1, 0], [1, 0]], reads[1]
    # DeepSpeed's timer starts in the third step.
    assert waits == 0
    # A copy for each weight would exceed it, as would DeepSpeed's reduction.
    assert launches["copy_"] < weights, launches
    # The device of the weights is read, the discriminator frozen and released; each walk delays the launches of a GPU.
    assert (walks, traces) == (3, 0)


def test_a_gpu_updates_weights_together_unless_one_kernel_is_asked_for():
    """With ``fused=False``, torch would update one weight after another, and launch a dozen kernels for each."""
    for fused, expected in ((False, None), (True, True)):
        made = _make_optimizer([torch.nn.Parameter(torch.zeros(2))], OptimizerConfig(fused=fused))
        # None leaves the choice to torch, which takes multi-tensor kernels on a GPU.
        assert made.defaults["fused"] is expected and made.defaults["foreach"] is None


@pytest.mark.parametrize("kind", ["adamw", "radam"])
def test_optimizers_get_all_of_their_settings(kind):
    weight, engine = torch.nn.Parameter(torch.zeros(2)), SimpleNamespace()
    config = OptimizerConfig(kind, lr=0.5, betas=(0.7, 0.8), eps=0.25, weight_decay=0.125)
    (group,) = _make_optimizer([weight], config).param_groups
    assert [group[name] for name in ("lr", "betas", "eps", "weight_decay")] == [0.5, (0.7, 0.8), 0.25, 0.125]
    weight.grad = torch.tensor([3.0, 4.0])
    _clip(engine, [weight], 0.5)
    # The reported norm is that before clipping.
    assert float(engine._global_grad_norm) == 5
    assert weight.grad.tolist() == pytest.approx([0.3, 0.4], rel=1e-4)


def test_gradients_of_convolutions_are_not_copied_to_the_layout_of_their_weights():
    """A GPU convolves channels last, and returns gradients so, as the CPU does."""
    conv, counts = SpatialConv(8, 8), {}
    for stored in ("contiguous", "channels_last"):
        if stored == "contiguous":
            conv.to(memory_format=torch.contiguous_format)
        else:
            before = conv.weight.clone()
            store_channels_last(list(conv.parameters()))
            assert torch.equal(conv.weight, before)
        conv.zero_grad()
        loss = conv(torch.rand(1, 2, 8, 8, 8)).sum()
        with LaunchCounter() as counted:
            loss.backward()
        counts[stored] = counted.kernels["copy_"]
        assert conv.weight.grad.stride() == conv.weight.stride()
    assert counts == {"contiguous": 1, "channels_last": 0}


TWICE = """
import sys
from vidvq import config as settings
from vidvq.train import TrainConfig, run_train
if __name__ == "__main__":
    for name in ("one", "two"):
        out = f"out={sys.argv[1]}/{name}"
        run_train(settings.load(TrainConfig, settings.find_config("demo"), [*sys.argv[2:], out, "steps=1"]))
"""


def test_a_process_trains_twice_alike(settings, clips_dir, tmp_path):
    script = tmp_path / "twice.py"
    script.write_text(TWICE)
    arguments = [str(tmp_path), *settings, f"data.clips={clips_dir}", "data.workers=1"]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (read_checkpoint(tmp_path / name).fingerprints for name in ("one", "two"))
    assert one == two
