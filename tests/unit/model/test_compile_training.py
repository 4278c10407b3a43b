"""Encoding, decoding and the training forward pass are one graph each, in fp32 and bf16, on the CPU and on CUDA."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.compiler import config as compiler

from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import (
    DifferentialConfig,
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    SimVQConfig,
    VQConfig,
    search,
)
from vidvq.model.step_shape import StepShape

BOOKS = {
    "vq": VQConfig(size=32, warmup=2),
    "gradient": VQConfig(size=32, warmup=2, update="gradient", rotation=True, cosine=True),
    "residual": ResidualConfig(depth=2, layer=VQConfig(size=8, warmup=2)),
    "simvq": SimVQConfig(size=32),
    "fsq": FSQConfig(levels=(5, 4)),
    "bsq": LFQConfig(size=16, spherical=True),
}
VIDEO = torch.rand(2, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make(kind: str) -> VideoTokenizer:
    torch.manual_seed(0)
    small = StackConfig((8, 8), (1, 1))
    spatial, _, differences = kind.partition("-")
    coding = DifferentialConfig(refresh=VQConfig(size=16, warmup=2)) if differences else None
    books = QuantizerConfig(4, BOOKS[spatial], BOOKS[spatial], coding)
    return VideoTokenizer(
        TokenizerConfig(encoder=small, decoder=DecoderConfig(small.channels, small.blocks), quantizer=books)
    )


# By default, tests/train/test_compile.py compiles training in a run.
@pytest.mark.slow
@pytest.mark.parametrize("half", [pytest.param(None, id="fp32"), pytest.param(torch.bfloat16, id="bf16")])
@pytest.mark.parametrize("kind", ["vq-differences", *BOOKS])
def test_the_training_forward_is_one_graph(kind, half):
    torch.compiler.reset()
    plain, compiled = make(kind).train(), make(kind).train()
    graphs = 0

    def count(module, _):
        nonlocal graphs
        graphs += 1
        return module

    compiled.compile_training(backend=count)
    # Two steps of warm-up in eager mode, steps with and without the replacement of dead codes.
    for step in range(13):
        results = []
        for tokenizer in (plain, compiled):
            torch.manual_seed(step)
            with torch.autocast("cpu", dtype=half, enabled=half is not None):
                results.append(tokenizer(VIDEO * (1 - step / 20)))
        for expected, found in zip(*results, strict=True):
            assert torch.equal(expected, found), step
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), compiled.buffers(), strict=True))
    assert graphs == 1


def test_images_are_compiled_though_the_codebook_of_later_frames_never_warms_up():
    torch.compiler.reset()
    plain, compiled = make("vq-differences").train(), make("vq-differences").train()
    passes: list[torch.fx.GraphModule] = []
    compiled.compile_training(backend=lambda module, _: passes.append(module) or module)
    for step in range(4):
        results = []
        for tokenizer in (plain, compiled):
            torch.manual_seed(step)
            results.append(tokenizer(VIDEO[:, :, :1]))
        for expected, found in zip(*results, strict=True):
            assert torch.equal(expected, found), step
    assert len(passes) == 1


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_steps_of_many_groups_are_one_graph(dtype):
    torch.compiler.reset()
    tokenizer = make("vq").eval().to(dtype)
    tokenizer.step_shape = tokenizer.decode_shape = StepShape(2, 3)
    codes = tokenizer.encode(VIDEO)
    frames = tokenizer.decode(codes)
    graphs = 0

    def count(module, _):
        nonlocal graphs
        graphs += 1
        return module

    tokenizer.compile_steps(backend=count)
    assert torch.equal(tokenizer.encode(VIDEO), codes)
    assert torch.equal(tokenizer.decode(codes), frames)
    # Of encoding and of decoding: the first step and a later one.
    assert graphs <= 4


def test_more_shapes_are_compiled_than_torch_allows():
    torch.compiler.reset()
    tokenizer = make("vq").eval()
    # The first step and a later one.
    video = VIDEO[:1, :, :5]
    codes = tokenizer.encode(video)
    with compiler.patch(recompile_limit=1):
        tokenizer.compile_steps(backend="eager")
        assert torch.equal(tokenizer.encode(video), codes)


def test_kernels_of_steps_are_not_chosen_by_their_time(monkeypatch):
    """Another choice rounds differently, and workers of one job would time differently."""
    seen, compile_call = [], torch.compile

    def keep(call, **options):
        seen.append(options)
        # Refuses options that it does not know.
        return compile_call(call, **options)

    monkeypatch.setattr(torch, "compile", keep)
    make("vq").compile_steps()
    assert len(seen) == 2 and all(options["options"] == {"deterministic": True} for options in seen)
    # Other backends have other options.
    make("vq").compile_steps(backend="eager")
    assert not any("options" in options for options in seen[2:])


def test_triton_kernels_are_not_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call.__name__))
    tokenizer = make("vq")
    monkeypatch.setattr("vidvq.model.tokenizer.HAS_TRITON", True)
    monkeypatch.setitem(sys.modules, "vidvq.model.kernels.encoder", SimpleNamespace(encode=torch.clone))
    tokenizer.use_triton()
    tokenizer.compile_steps()
    assert compiled == ["decode_call"]


def test_the_search_on_cuda_is_one_operator(monkeypatch):
    """Traced with tensors that claim to be on a CUDA device; the kernel is not launched."""
    torch.compiler.reset()
    monkeypatch.setattr(search, "HAS_TRITON", True)
    graphs = []

    def keep(module, _):
        graphs.append(module)
        return module

    with FakeTensorMode():
        latents, codebook = torch.empty(70, 8, device="cuda"), torch.empty(32, 8, device="cuda")
        codes = torch.compile(search.nearest_codes, fullgraph=True, backend=keep)(latents, codebook)
    assert (codes.shape, codes.dtype, codes.device.type) == ((70,), torch.int64, "cuda")
    assert "nearest_codes_fused" in graphs[0].code
