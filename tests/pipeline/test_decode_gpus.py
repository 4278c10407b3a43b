"""`vidvq decode` on GPUs, with a CPU in the place of the GPU: precision, compilation, and what is recorded of both."""

import json

import numpy as np
import pytest
import torch

from vidvq.decode import job
from vidvq.formats.token_index import index_tokens
from vidvq.model import VideoTokenizer
from vidvq.pretrained.device import prepare

COMPILE = VideoTokenizer.compile_steps


@pytest.fixture
def gpu(monkeypatch):
    """Torch finds a GPU. The list gets the data type, the step shape, and whether calls are captured, per worker."""
    found, move = [], VideoTokenizer.to

    def note(tokenizer, execution, gpus=1.0):
        prepare(tokenizer, execution, gpus)
        found.append([tokenizer.decoder.head.weight.dtype, str(tokenizer.decode_shape), False])

    def compile_steps(self, capture=False):
        found[-1][2] = capture

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU A")
    monkeypatch.setattr(VideoTokenizer, "to", lambda self, *a, **k: self if a == ("cuda",) else move(self, *a, **k))
    monkeypatch.setattr(VideoTokenizer, "compile_steps", compile_steps)
    monkeypatch.setattr(job, "prepare", note)
    return found


@pytest.fixture
def run(vidvq, tokens_dir, checkpoint_dir, tmp_path):
    """``run(name, *arguments)``: decode into a file or folder of this test."""
    return lambda name, *arguments: vidvq(
        "decode", tokens_dir, "--checkpoint", checkpoint_dir, "--out", tmp_path / name, "runtime.workers=0", *arguments
    )


def frames(folder) -> list[np.ndarray]:
    return [np.load(path).astype(int) for path in sorted(folder.glob("*.npy"))]


def recorded(path) -> dict:
    names = ("device", "precision", "compiled", "streams", "groups")
    return {name: value for name, value in json.loads(path.read_bytes()).items() if name in names}


@pytest.mark.parametrize(
    ("settings", "dtype", "precision", "compiled"),
    [
        ((), torch.bfloat16, "bf16", True),
        (("precision=fp32", "runtime.compile=off"), torch.float32, "fp32", False),
        (("precision=tf32", "runtime.compile=off"), torch.float32, "tf32", False),
    ],
)
def test_networks_run_in_bf16_compiled_and_captured_unless_told_otherwise(
    gpu, run, tmp_path, settings, dtype, precision, compiled
):
    assert run("cpu", "format=npy", "device=cpu").code == 0 and gpu.pop() == [torch.float32, "1x1", False]
    assert recorded(tmp_path / "cpu/decode.json") == {}
    assert run("gpu", "format=npy", "batch=3", *settings).code == 0
    assert gpu == [[dtype, "3x8", compiled]]
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    how = {"device": "cuda", "precision": precision, "compiled": compiled, "streams": 3, "groups": 8}
    assert recorded(tmp_path / "gpu/decode.json") == how
    pairs = list(zip(frames(tmp_path / "gpu"), frames(tmp_path / "cpu"), strict=True))
    largest = max(np.abs(one - other).max() for one, other in pairs)
    assert 0 < largest < 16 if precision == "bf16" else largest <= 1


@pytest.mark.slow
def test_compiled_networks_decode_the_same_frames(gpu, run, tmp_path, monkeypatch):
    settings = ("format=npy", "batch=3", "precision=fp32")
    assert run("eager", *settings, "runtime.compile=off").code == 0

    def trace(self, capture=False):
        # Tracing asks the device itself.
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        COMPILE(self, backend="eager")

    torch.compiler.reset()
    monkeypatch.setattr(VideoTokenizer, "compile_steps", trace)
    assert run("compiled", *settings).code == 0
    pairs = list(zip(frames(tmp_path / "compiled"), frames(tmp_path / "eager"), strict=True))
    assert pairs and all(np.abs(one - other).max() <= 1 for one, other in pairs)


def test_a_folder_is_extended_only_as_it_was_decoded(gpu, run, tmp_path):
    off = ("format=npy", "runtime.compile=off")
    assert run("out", *off).code == 0
    for settings, message in (
        ((*off, "precision=fp32"), 'precision was "bf16", now "fp32"'),
        ((*off, "device=cpu"), 'device was "cuda", now "cpu"'),
        (("format=npy",), "compiled was false, now true"),
    ):
        refused = run("out", *settings)
        assert refused.code == 2 and message in refused.error
    assert run("out", *off, "precision=bf16").code == 0
    assert run("old", *off, "device=cpu").code == 0
    assert 'device was "cpu", now "cuda"' in run("old", *off).error
    assert run("old", *off, "device=cpu").code == 0


def test_a_file_of_a_range_records_how_it_was_decoded(gpu, run, tmp_path, tokens_dir):
    info = index_tokens(tokens_dir)[0].read_info()
    interval = ("--source", info.source, "--to", "0.2", "runtime.compile=off")
    assert run("part.npy", *interval).code == 0 and gpu == [[torch.bfloat16, "1x8", False]]
    how = {"device": "cuda", "precision": "bf16", "compiled": False, "streams": 1, "groups": 8}
    assert recorded(tmp_path / "part.npy.decode.json") == how
    assert "was decoded from other tokens or settings" in run("part.npy", *interval, "precision=fp32").error


def test_a_step_that_does_not_fit_the_memory_stops_the_job_in_one_line(gpu, run, monkeypatch):
    def full(self, codes, state=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VideoTokenizer, "decode_step", full)
    stopped = run("out", "runtime.compile=off")
    assert stopped.code == 1 and "a step of 8x8 streams x groups does not fit the memory of the GPU" in stopped.error


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("device=cuda", "torch finds no CUDA device on this machine"),
        ("precision=bf16", "precision=bf16 needs a GPU"),
    ],
)
def test_settings_for_gpus_are_refused_without_one(run, tmp_path, setting, message):
    refused = run("out", setting)
    assert refused.code == 2 and message in refused.error and not (tmp_path / "out").exists()
