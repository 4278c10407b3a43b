"""Triton kernels, interpreted on the CPU: equal to plain torch up to rounding, and to themselves to the bit."""

from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.kernels

triton = pytest.importorskip("triton", reason="Triton comes with torch for CUDA; `make test-kernels` installs it")

from triton.runtime import interpreter  # noqa: E402

from vidvq.model import (  # noqa: E402
    Discriminator,
    DiscriminatorConfig,
    TokenizerConfig,
    VideoTokenizer,
)
from vidvq.model.calls import run_network  # noqa: E402
from vidvq.model.encoder import DecoderConfig, StackConfig  # noqa: E402
from vidvq.model.kernels import group_norm  # noqa: E402
from vidvq.model.kernels import norm as norm_kernels  # noqa: E402
from vidvq.model.kernels.pointwise import pointwise  # noqa: E402
from vidvq.model.kernels.spatial import spatial  # noqa: E402
from vidvq.model.kernels.temporal import temporal  # noqa: E402
from vidvq.model.kernels.tile import launch  # noqa: E402
from vidvq.model.layers import SpatialConv, TemporalCache, TemporalConv  # noqa: E402
from vidvq.model.quantize import QuantizerConfig, VQConfig  # noqa: E402
from vidvq.model.quantize.search import nearest_codes_blockwise  # noqa: E402
from vidvq.model.quantize.search_triton import nearest_codes_fused  # noqa: E402
from vidvq.model.step_shape import StepShape  # noqa: E402

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def ordered_products(monkeypatch):
    """Products that are summed in order, as those of a GPU are.

    The interpreter calls a library, which sums a row by its place in the tile, and takes bfloat16 for integers.
    """

    def as_floats(part: interpreter.TensorHandle) -> np.ndarray:
        is_half = part.dtype.scalar == triton.language.bfloat16
        return (part.data.astype(np.uint32) << 16).view(np.float32) if is_half else part.data

    def create_dot(self, a, b, sums, *_):
        total = sums.data.copy()
        for column, row in zip(as_floats(a).T, as_floats(b), strict=True):
            total += column[:, None] * row
        return interpreter.TensorHandle(total, sums.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def make_norm(channels: int, dtype: torch.dtype) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm.to(dtype)


def activate(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return F.silu(F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps))


def assert_near(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


@every_dtype
@pytest.mark.parametrize(
    ("stride", "inputs", "outputs", "height", "width"), [(1, 16, 24, 9, 7), (2, 24, 40, 8, 6), (2, 72, 16, 5, 1)]
)
@torch.no_grad()
def test_spatial_convolutions(dtype, stride, inputs, outputs, height, width):
    torch.manual_seed(0)
    conv, norm = SpatialConv(inputs, outputs, stride).to(dtype), make_norm(outputs, dtype)
    x = torch.randn(2, 3, height, width, inputs).to(dtype)
    expected = SpatialConv(inputs, outputs, stride)
    expected.load_state_dict(conv.state_dict())
    sums, activated = spatial(x, conv, norm)
    assert_near(sums, expected(x.float()))
    assert_near(activated, activate(expected(x.float()), norm))
    assert not spatial(x, conv, norm, keep=False).sums.numel()


@every_dtype
@pytest.mark.parametrize(("frames", "causality"), [(1, "group"), (2, "group"), (4, "group"), (4, "strict")])
@torch.no_grad()
def test_temporal_convolutions(dtype, frames, causality):
    torch.manual_seed(0)
    conv, norm = TemporalConv(16, 24, frames, causality).to(dtype), make_norm(24, dtype)
    expected = TemporalConv(16, 24, frames, causality)
    expected.load_state_dict(conv.state_dict())
    x, residual = (torch.randn(2, 3 * frames, 3, 2, channels).to(dtype) for channels in (16, 24))
    past = None
    # At the start of a stream, and after it.
    for start, stop in pairwise((0, frames, 3 * frames)):
        caches = [TemporalCache(past and tuple(kept.to(kind) for kept in past)) for kind in (torch.float32, dtype)]
        sums = expected(x[:, start:stop].float(), caches[0]) + residual[:, start:stop].float()
        found = temporal(x[:, start:stop], conv, caches[1], residual[:, start:stop].contiguous(), norm)
        assert_near(found.sums, sums)
        assert_near(found.activated, activate(sums, norm))
        past = tuple(caches[1].updated)
        assert torch.equal(torch.cat(past), torch.cat(caches[0].updated).to(dtype))


@every_dtype
def test_products(dtype):
    torch.manual_seed(0)
    x, weights, bias = (torch.randn(*shape).to(dtype) for shape in ((7, 11, 80), (5, 80), (5,)))
    found = pointwise(x, weights / 8, bias)
    assert_near(found, F.linear(x.float(), (weights / 8).float(), bias.float()))


def test_the_codebook_search():
    torch.manual_seed(0)
    for n, k, d in ((1, 2, 3), (70, 130, 8), (64, 64, 16), (65, 300, 18), (130, 257, 6), (66, 70, 150)):
        for latents, codebook in (
            (torch.randn(n, d), torch.randn(k, d)),
            # Whole numbers, of which sums are exact: many codes are equally near, or equal.
            (torch.randint(-1, 2, (n, d)).float(), torch.randint(-1, 2, (k, d)).float()),
        ):
            half = codebook.square().sum(dim=1) / 2
            expected = nearest_codes_blockwise(latents, codebook, half)
            assert torch.equal(nearest_codes_fused(latents, codebook, half), expected), (n, k, d)


@pytest.mark.parametrize("codes", [1024, 1100, 1090])
def test_few_latents_search_a_large_codebook_in_parts(codes, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("vidvq.model.quantize.search_triton._MIN_CODES", 128)
    for latents, codebook in (
        (torch.randn(70, 5), torch.randn(codes, 5)),
        (torch.randint(-1, 2, (70, 5)).float(), torch.randint(-1, 2, (codes, 5)).float()),
    ):
        half = codebook.square().sum(dim=1) / 2
        assert torch.equal(
            nearest_codes_fused(latents, codebook, half), nearest_codes_blockwise(latents, codebook, half)
        )


@pytest.mark.parametrize("codes", [70, 1024])
def test_a_latent_that_is_not_a_number_has_some_code(codes):
    codebook, latents = torch.randn(codes, 5), torch.randn(40, 5)
    half = codebook.square().sum(dim=1) / 2
    expected = nearest_codes_fused(latents, codebook, half)
    latents[3] = torch.nan
    found = nearest_codes_fused(latents, codebook, half)
    assert 0 <= found[3] < codes
    assert torch.equal(found[4:], expected[4:])


def make_tokenizer(dtype: torch.dtype = torch.float32, **changes: Any) -> VideoTokenizer:
    torch.manual_seed(0)
    stack, decoder = StackConfig((16, 24), (1, 1)), DecoderConfig((16, 24), (1, 1))
    books = QuantizerConfig(20, VQConfig(size=32), VQConfig(size=64))
    config = TokenizerConfig(temporal_factor=2, patch_size=2, encoder=stack, decoder=decoder, quantizer=books, linear=4)
    config = replace(config, **changes)
    tokenizer = VideoTokenizer(config).eval()
    with torch.no_grad():
        for name, parameter in tokenizer.named_parameters():
            # A new residual block is the identity and has no past.
            if name.endswith("time.mix.weight"):
                parameter.normal_(std=0.1)
    tokenizer.use_half(dtype)
    return tokenizer


def encode(tokenizer: VideoTokenizer, video: Tensor) -> Tensor:
    with torch.no_grad():
        return run_network(tokenizer.encoder, video.to(tokenizer.dtype), None)[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"patch": "haar", "patch_frames": 1}, {"patch_frames": 1, "causality": "strict", "linear": 0}],
    ids=["default", "merged frames", "strict"],
)
def test_the_encoder(changes):
    tokenizer, video = make_tokenizer(**changes), torch.rand(1, 3, 4, 8, 12) * 2 - 1
    expected = encode(tokenizer, video)
    tokenizer.use_triton()
    assert_near(encode(tokenizer, video), expected)


@every_dtype
def test_a_latent_depends_on_its_receptive_field_alone(dtype):
    tokenizer = make_tokenizer(dtype)
    tokenizer.use_triton()
    video = torch.rand(2, 3, 4, 16, 32) * 2 - 1
    whole = encode(tokenizer, video)
    assert torch.equal(encode(tokenizer, video[1:]), whole[1:])
    # Group by group.
    past, parts = None, []
    with torch.no_grad():
        for group in video[:1].to(dtype).split(2, dim=2):
            latents, past = run_network(tokenizer.encoder, group, past)
            parts.append(latents)
    assert torch.equal(torch.cat(parts, dim=2), whole[:1])
    # A part of the picture, less the latents that see its borders.
    margin = tokenizer.encoder.receptive_radius
    part = encode(tokenizer, video[:1, :, :, :, tokenizer.spatial_factor :])
    assert torch.equal(part[..., margin:], whole[:1, ..., 1 + margin :])


def test_kernels_are_launched_on_the_device_of_their_input(current_devices):
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **__: launched.append(current_devices[-1])

    x = torch.zeros(4, 8)
    launch(Kernel(), x, torch.zeros(16, 8), None, (4, 16))
    assert len(launched) == 1 and launched[0] is x


def test_tokens_do_not_depend_on_step_shapes_and_tiles(monkeypatch):
    # On CUDA devices the search is this kernel.
    monkeypatch.setattr("vidvq.model.quantize.search.nearest_codes_blockwise", nearest_codes_fused)
    video = torch.rand(2, 3, 5, 8, 40) * 2 - 1
    found = []
    for shape, tile in ((StepShape(), 1024), (StepShape(2, 3), 1024), (StepShape(2, 1), 8)):
        tokenizer = make_tokenizer(tile=tile)
        tokenizer.use_triton()
        tokenizer.step_shape = shape
        found.append(tokenizer.encode(video))
    assert len(found[0].unique()) > 8
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@every_dtype
@pytest.mark.parametrize(
    ("rows", "channels", "has_bias", "activated"),
    [(1, 16, True, True), (70, 24, False, True), (70, 24, True, False), (300, 256, True, True)],
)
def test_norm_and_activation_with_gradients(dtype, rows, channels, has_bias, activated, monkeypatch):
    # Some programs of the backward pass compute several tiles.
    monkeypatch.setattr(norm_kernels, "_PROGRAMS", 3)
    torch.manual_seed(0)
    x, slope = torch.randn(2, rows, channels).to(dtype) + 3, torch.randn(2, rows, channels).to(dtype)
    norm, bias = make_norm(channels, torch.float32), torch.randn(channels, requires_grad=True)
    weights = [*norm.parameters(), *([bias] if has_bias else [])]
    given = x.float().requires_grad_()
    expected = norm(given + bias if has_bias else given)
    expected = F.silu(expected) if activated else expected
    gradients = torch.autograd.grad(expected, [given, *weights], slope.float())
    x.requires_grad_()
    found = norm_kernels.FusedNorm.apply(x, bias if has_bias else None, norm.weight, norm.bias, norm.eps, activated)
    assert_near(found, expected)
    for one, other in zip(torch.autograd.grad(found, [x, *weights], slope), gradients, strict=True):
        assert one.dtype == (dtype if one.ndim > 1 else torch.float32)
        torch.testing.assert_close(one.float(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * rows**0.5)


@every_dtype
@pytest.mark.parametrize(("channels", "groups", "size"), [(16, 8, (1, 2, 3)), (12, 1, (3, 5, 4)), (64, 8, (2, 16, 16))])
def test_group_norm_and_leaky_relu_with_gradients(dtype, channels, groups, size, monkeypatch):
    monkeypatch.setattr(group_norm, "_PROGRAMS", 6)
    torch.manual_seed(0)
    x, slope = (torch.randn(2, channels, *size).to(dtype) for _ in range(2))
    weight, bias = torch.randn(2, channels, requires_grad=True).unbind()
    given = x.float().requires_grad_()
    expected = F.leaky_relu(F.group_norm(given, groups, weight, bias, 1e-5), 0.2)
    gradients = torch.autograd.grad(expected, [given, weight, bias], slope.float())
    # As convolutions return it.
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    found = group_norm.GroupNormLeakyRelu.apply(x, weight, bias, groups, 1e-5, 0.2)
    assert_near(found, expected)
    tensors = torch.autograd.grad(found, [x, weight, bias], slope)
    assert found.stride() == tensors[0].stride() == x.stride()
    for one, other in zip(tensors, gradients, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * prod(size) ** 0.5)


def test_the_discriminator_of_a_gpu(monkeypatch):
    torch.manual_seed(0)
    network, video = Discriminator(DiscriminatorConfig(channels=8, layers=1)), torch.rand(1, 3, 5, 16, 16)
    expected = network(video)
    monkeypatch.setattr("vidvq.model.discriminator.prefers_channels_last", lambda x: True)
    found = network(video)
    assert "GroupNormLeakyRelu" in str(_history(found))
    assert_near(found, expected)


def _history(tensor: Tensor) -> list[Any]:
    """Return the nodes of the graph of a tensor."""
    nodes: list[Any] = [tensor.grad_fn]
    known = set()
    for node in nodes:
        known.add(node)
        nodes += [other for other, _ in node.next_functions if other is not None and other not in known]
    return nodes
