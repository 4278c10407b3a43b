"""What a job on GPUs does before it starts, with a CPU in the place of the GPU: its kind, and what fits its memory."""

import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vidvq.formats.execution import Execution
from vidvq.formats.plan import read_plan
from vidvq.model import VideoTokenizer
from vidvq.model.step_shape import StepShape
from vidvq.runtime import InlinePool
from vidvq.tokenize import gpu_memory
from vidvq.tokenize.agreement import AgreementCheck
from vidvq.tokenize.worker import TokenShardWorker

SETTINGS = ("runtime.workers=0", "runtime.compile=off", "batch=4", "groups=2")


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(name, max_pixels)``: torch finds a GPU, which has memory for steps of that many pixels."""
    fits, move = gpu_memory._fits, VideoTokenizer.to

    def install(name: str = "GPU A", max_pixels: float = float("inf")) -> list[int]:
        tried: list[int] = []

        def limited(self, frames, state=None):
            b, _, _, h, w = frames.shape
            tried.append(b * self.temporal_factor * self.step_shape.groups * h * w)
            if tried[-1] > max_pixels:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch.zeros(b, 1, 1, 1, dtype=torch.int64), None

        def trial(*arguments):
            with monkeypatch.context() as patch:
                # Steps of the trial are too large for a CPU.
                patch.setattr(VideoTokenizer, "encode_step", limited)
                return fits(*arguments)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        monkeypatch.setattr(VideoTokenizer, "to", lambda self, *a, **k: self if a == ("cuda",) else move(self, *a, **k))
        monkeypatch.setattr(gpu_memory, "_fits", trial)
        return tried

    return install


@pytest.fixture
def run(vidvq, clips_dir, checkpoint_dir, tmp_path):
    """``run(*settings)``: tokenize into the folder of this test."""
    return lambda *settings: vidvq(
        "tokenize", clips_dir, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", *SETTINGS, *settings
    )


def recorded(folder) -> dict:
    execution = read_plan(folder).made_from["execution"]
    assert json.loads((folder / "tokenizer.json").read_bytes())["execution"] == execution
    return execution


def test_a_step_that_fits_is_recorded_as_it_is(gpu, run, tmp_path):
    tried = gpu()
    done = run()
    assert done.code == 0 and "does not fit" not in done.err
    assert recorded(tmp_path / "out") == {
        "device": "cuda",
        "precision": "bf16",
        "compiled": False,
        "streams": 4,
        "groups": 2,
        "max_pixels": 1 << 27,
        "gpu": "GPU A",
    }
    # One step, of nearly as many pixels as there may be.
    assert len(tried) == 1 and 0.9 < tried[0] / (1 << 27) <= 1


def test_triton_kernels_are_recorded_and_need_a_gpu_and_triton(gpu, run, tmp_path, monkeypatch):
    refused = run("kernels=triton", "device=cpu")
    assert refused.code == 2 and "kernels=triton needs a GPU" in refused.error
    gpu()
    with monkeypatch.context() as patch:
        patch.setattr("vidvq.model.tokenizer.HAS_TRITON", False)
        refused = run("kernels=triton")
    assert refused.code == 2 and "Triton is not installed" in refused.error
    assert not (tmp_path / "out/plan.json").exists()
    used = []
    monkeypatch.setattr(VideoTokenizer, "use_triton", lambda self: used.append(self))
    assert run("kernels=triton").code == 0 and used
    assert recorded(tmp_path / "out")["kernels"] == "triton"


def test_a_step_is_halved_before_the_job_until_it_fits(gpu, run, tmp_path):
    tried = gpu(max_pixels=1 << 25)
    done = run()
    assert done.code == 0
    assert "does not fit the memory of GPU A; steps have at most 34 megapixels" in " ".join(done.err.split())
    assert recorded(tmp_path / "out")["max_pixels"] == 1 << 25
    assert len(tried) == 3
    # Resuming takes what the plan has, without another trial.
    (tmp_path / "out/summary.json").unlink()
    tried = gpu(max_pixels=1 << 20)
    assert run().code == 0 and not tried


def test_a_job_that_scores_tries_to_decode_as_well(gpu, run, monkeypatch):
    gpu()

    def full(self, codes, state=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VideoTokenizer, "decode_step", full)
    done = run("quality.share=0.5")
    assert done.code == 2 and "not even a step of one group fits" in done.error


def test_an_estimate_tries_the_step_too(gpu, run, tmp_path):
    tried = gpu(max_pixels=1 << 25)
    done = run("--dry-run")
    assert done.code == 0 and "steps have at most 34 megapixels" in " ".join(done.err.split())
    assert len(tried) == 3 and not (tmp_path / "out").exists()


def test_an_estimate_is_for_the_workers_of_the_gpus(gpu, run, monkeypatch):
    gpu()
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 << 30))
    monkeypatch.setattr(InlinePool, "count_workers", lambda self, gpus: round(1 / gpus))
    one, two = (json.loads(run("--dry-run", "--json", f"runtime.gpus_per_worker={share}").out) for share in (1, 0.5))
    assert (one["workers"], two["workers"]) == (1, 2)


def test_a_gpu_too_small_for_any_step_is_refused(gpu, run, tmp_path):
    gpu(max_pixels=0)
    done = run()
    assert done.code == 2 and "not even a step of one group fits the memory of its GPU A" in done.error
    assert not (tmp_path / "out/plan.json").exists()


@pytest.mark.parametrize(("gib", "expected"), [(16, 0.25 - 1 / 16), (4, 0.125)])
def test_workers_that_share_a_gpu_share_its_memory(gpu, run, monkeypatch, gib, expected):
    gpu()
    shares = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gib << 30))
    assert run("runtime.gpus_per_worker=0.25").code == 0
    # The trial, and the worker; the CUDA context of each takes a GiB of its share, or half of a small one.
    assert shares == [expected, expected]


class FakeMemory:
    """The memory of a GPU and what a step takes of it, in bytes."""

    device, temporal_factor, spatial_factor = torch.device("cuda"), 4, 8
    supports_streaming = takes_bytes = True
    decode_shape = StepShape(1, 1)

    def __init__(self, capacity: int, per_pixel: int) -> None:
        self.capacity, self.per_pixel = capacity, per_pixel
        self.held = self.peak = 0

    def encode_step(self, frames, state=None):
        b, _, _, h, w = frames.shape
        self.take(self.held + b * self.temporal_factor * self.step_shape.groups * h * w * self.per_pixel)
        return torch.zeros(b, 1, 1, 1, dtype=torch.int64), None

    def take(self, bytes: int) -> None:
        self.peak = max(self.peak, bytes)
        if bytes > self.capacity:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize(("compiled", "pixels"), [(False, 1 << 14), (True, 1 << 13)])
def test_graphs_and_a_step_of_another_size_fit_the_memory_together(monkeypatch, compiled, pixels):
    memory = FakeMemory(capacity=100 << 14, per_pixel=96)
    weights, empty = 1 << 10, torch.empty

    def hold(size, dtype, device):
        memory.held += size
        memory.take(memory.held)
        tensor = empty(0)
        weakref.finalize(tensor, lambda: setattr(memory, "held", memory.held - size))
        return tensor

    monkeypatch.setattr(gpu_memory, "prepare_step", lambda tokenizer, pixels, state: pixels.permute(0, 4, 1, 2, 3))
    for name, fake in {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: setattr(memory, "peak", memory.held),
        "max_memory_reserved": lambda: weights + memory.peak,
        "memory_reserved": lambda: weights + memory.held,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "empty", hold)
    execution = Execution("cuda", "bf16", compiled, 1, 1, 1 << 16)
    assert gpu_memory.fit_memory(memory, execution, decodes=False).max_pixels == pixels
    assert memory.held == 0


def test_the_reference_needs_half_of_the_memory_of_a_step(checkpoint_dir):
    pixels = 1 << 22
    check = AgreementCheck(checkpoint_dir, Execution("cpu", "bf16", False, 8, 9, pixels))
    for side in (64, 128, 256, 512):
        shape = check._reference.shape_for(side, side)
        count = shape.streams * shape.groups * check._reference.temporal_factor * side**2
        # Values of fp32 are twice as large as those of bf16.
        assert 2 * count <= pixels / 2


FULL = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")]


@pytest.mark.parametrize("error", FULL)
def test_memory_that_others_take_later_stops_the_job(gpu, run, tmp_path, monkeypatch, error):
    gpu()

    def full(self, frames, state=None):
        raise error

    monkeypatch.setattr(VideoTokenizer, "encode_step", full)
    done = run()
    assert done.code == 1
    assert "a step of 4x2 streams x groups does not fit the memory of the GPU" in done.error


def test_a_gpu_of_another_kind_is_refused_unless_the_plan_allows_it(gpu, run, tmp_path, vidvq, clips_dir):
    gpu("GPU A")
    assert run().code == 0
    commit = next((tmp_path / "out/commits").glob("*.json"))
    commit.unlink()
    gpu("GPU B")
    refused = run()
    assert refused.code == 2
    assert "has a GPU B, and the job was planned for GPU A, whose tokens may differ by rounding" in refused.error
    # The permission is part of the plan.
    assert "execution.gpu" in run("mixed_gpus=true").error
    gpu("GPU A")
    assert run().code == 0


def test_gpus_of_all_kinds_work_on_a_plan_that_says_so(gpu, run, tmp_path):
    gpu("GPU A")
    assert run("mixed_gpus=true").code == 0
    assert recorded(tmp_path / "out")["gpu"] == "any"
    next((tmp_path / "out/commits").glob("*.json")).unlink()
    # Each worker halves the step until it fits its own memory.
    tried = gpu("GPU B", max_pixels=1 << 25)
    assert run("mixed_gpus=true").code == 0
    assert len(tried) == 3 and tried[-1] <= 1 << 25
    assert recorded(tmp_path / "out")["max_pixels"] == 1 << 27


def test_a_plan_without_a_kind_resumes_on_any(gpu, run, tmp_path, monkeypatch):
    gpu("GPU A")
    # As versions before the kind was recorded wrote it.
    with monkeypatch.context() as patch:
        patch.setattr(gpu_memory, "probe_gpu", lambda checkpoint, execution, *_: execution)
        assert run().code == 0
    assert "gpu" not in recorded(tmp_path / "out")
    next((tmp_path / "out/commits").glob("*.json")).unlink()
    assert run().code == 0
    assert "gpu" not in recorded(tmp_path / "out")


@pytest.mark.parametrize(("precision", "differs"), [("bf16", True), ("fp32", False)])
def test_tokens_of_a_lower_precision_are_compared_with_fp32(gpu, run, tmp_path, precision, differs):
    gpu()
    done = run(f"precision={precision}")
    metrics = json.loads((tmp_path / "out/metrics.json").read_bytes())
    assert ("differ from fp32" in done.err) == differs == ("fp32_agreement" in metrics)
    if differs:
        found = metrics["fp32_agreement"]
        assert 0 < found["differing"] < 0.2 * found["compared"]
        share = found["differing"] / found["compared"]
        assert f"{share:.2%} of {found['compared']} tokens, from the first samples of each worker" in " ".join(
            done.err.split()
        )


@pytest.mark.parametrize("error", FULL)
def test_a_reference_that_does_not_fit_beside_the_encoder_ends_the_comparison(gpu, run, tmp_path, monkeypatch, error):
    gpu()
    called = []

    def full(*arguments):
        called.append(arguments)
        raise error

    monkeypatch.setattr("vidvq.tokenize.agreement.iter_encode", full)
    assert run("precision=bf16", "batch=1").code == 0
    # The second sample is on its way when the first is compared.
    assert len(called) == 2
    assert "fp32_agreement" not in json.loads((tmp_path / "out/metrics.json").read_bytes())


def test_the_reference_has_the_tokens_of_fp32(checkpoint_dir, monkeypatch):
    """The worker's own tokens in fp32 do not differ, whatever it is said to compute in."""
    from vidvq.tokenize.config import TokenizeConfig

    execution = Execution("cpu", "bf16", False, 2, 3, 1 << 27)
    check = AgreementCheck(checkpoint_dir, execution)
    assert [check.take() for _ in range(9)] == [True] * 8 + [False]
    frames = np.random.default_rng(0).integers(0, 256, (21, 24, 40, 3), dtype=np.uint8)
    chunks = [frames[:9], frames[9:]]
    plain = TokenShardWorker(checkpoint_dir, TokenizeConfig(), None, Execution("cpu", "fp32", False, 2, 3, 1 << 27))
    from vidvq.model import iter_encode

    codes = torch.cat(list(iter_encode(plain._tokenizer, chunks))).numpy()
    assert check.compare(codes, chunks) == (codes.size, 0)
    codes[0, 0, :2] += 1
    assert check.compare(codes, chunks) == (codes.size, 2)
