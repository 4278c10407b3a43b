"""The discriminator: its logits, and the memory layout that a GPU needs for tensor cores."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode

from vidvq.model import Discriminator, DiscriminatorConfig, discriminator

_COPIES = ("clone", "_to_copy", "copy_", "constant_pad_nd")
# More numbers than a weight has.
_ACTIVATION = 50000


class _Layout(TorchDispatchMode):
    """Records the inputs and outputs of convolutions with their gradients, and counts copies of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.convolved: list[Tensor] = []
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            self.convolved += [args[0], out] if name == "convolution" else [args[1], out[0]]
        elif name in _COPIES and out.numel() >= _ACTIVATION:
            self.copies[name] += 1
        return out


def as_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(discriminator, "prefers_channels_last", lambda x: True)
    monkeypatch.setattr(discriminator, "HAS_TRITON", False)


def run(config: DiscriminatorConfig, size: tuple[int, int] = (32, 32)) -> list[Tensor]:
    """Return the logits, the gradient of the video and those of the weights."""
    torch.manual_seed(0)
    network = Discriminator(config)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    video = (torch.rand(2, 3, 9, *size) * 2 - 1).requires_grad_()
    logits = network(video)
    logits.square().sum().backward()
    gradients = [tensor.grad for tensor in (video, *network.parameters())]
    return [logits.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (DiscriminatorConfig(channels=8, layers=2), (32, 32)),
        (DiscriminatorConfig(channels=6, layers=1), (32, 32)),
        (DiscriminatorConfig("frames", channels=8, layers=1), (32, 32)),
        (DiscriminatorConfig(channels=8, layers=2), (30, 37)),
    ],
    ids=["groups", "one_group", "frames", "odd_size"],
)
def test_the_layout_of_a_gpu_changes_neither_logits_nor_gradients(config, size, monkeypatch):
    expected = run(config, size)
    as_on_a_gpu(monkeypatch)
    found = run(config, size)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_convolutions_get_channels_last_in_multiples_of_8_without_copies(monkeypatch):
    as_on_a_gpu(monkeypatch)
    network = Discriminator(DiscriminatorConfig(channels=8, layers=2))
    video = torch.rand(2, 3, 9, 32, 32, requires_grad=True)
    with _Layout() as seen:
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(video)
        torch.autograd.grad(logits.float().mean(), video)
    assert len(seen.convolved) == 4 * 4
    for tensor in seen.convolved:
        assert tensor.dtype == torch.bfloat16 and tensor.ndim == 4 and tensor.shape[1] % 8 == 0, tensor.shape
        assert tensor.is_contiguous(memory_format=torch.channels_last), tensor.stride()
    # The video to bf16 and back. Frames are padded and gathered, and their gradients cropped; pixels are padded in
    # channels as well.
    assert seen.copies == {"_to_copy": 2, "constant_pad_nd": 5, "clone": 2}


def test_the_layout_of_a_gpu_compiles_as_one_graph(monkeypatch):
    as_on_a_gpu(monkeypatch)
    torch.compiler.reset()
    network, video = Discriminator(DiscriminatorConfig(channels=8, layers=1)), torch.rand(1, 3, 5, 16, 16)
    expected = network(video)
    expected_gradients = torch.autograd.grad(expected.square().sum(), [*network.parameters()])
    operators: set[str] = set()

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        operators.update(name.removeprefix("aten.").partition(".")[0] for name in called)
        return make_boxed_func(graph.forward)

    network.compile_training(backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    found = network(video)
    gradients = torch.autograd.grad(found.square().sum(), [*network.parameters()])
    for one, other in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    # A compiler makes atomic sums of the gradient of windows, and they do not exist in bf16.
    assert "convolution_backward" in operators and not operators & {"unfold", "unfold_backward", "index_put"}
