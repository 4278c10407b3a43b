"""The layers of training steps on a GPU compute what those of the tokenizer do, with fewer copies."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.layers import ResBlock, TemporalCache
from vidvq.model.quantize import FSQConfig, QuantizerConfig
from vidvq.model.training_layers import use_training_layers
from vidvq.train.activation_checkpointing import checkpoint_activations

STACK = StackConfig((8, 16), (1, 1))


def make(patch_frames: int | None = None) -> VideoTokenizer:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(3, FSQConfig(levels=(5, 5, 5)), None)
    decoder = DecoderConfig(STACK.channels, STACK.blocks)
    config = TokenizerConfig(4, patch_frames=patch_frames, encoder=STACK, decoder=decoder, quantizer=quantizer)
    tokenizer = VideoTokenizer(config)
    for weight in tokenizer.parameters():
        # Residual blocks start as the identity.
        torch.nn.init.normal_(weight, std=0.3)
    return tokenizer


def run(tokenizer: VideoTokenizer, frames: int) -> list[Tensor]:
    """Return the reconstruction and the gradients of all weights."""
    video = torch.rand(2, 3, frames, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = tokenizer(video)
    (out.reconstruction.square().mean() + out.commitment_loss).backward()
    return [out.reconstruction.detach(), *(weight.grad for weight in tokenizer.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("patch_frames", [None, 2], ids=["group_of_one", "group_of_two"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_training_layers_change_neither_outputs_nor_gradients(frames, patch_frames, recomputed):
    expected = run(make(patch_frames), frames)
    tokenizer = make(patch_frames)
    use_training_layers(tokenizer)
    if recomputed:
        checkpoint_activations(tokenizer)
    found = run(tokenizer, frames)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.fixture
def autocast_of_a_gpu() -> Iterator[None]:
    """Autocast on the CPU casts the input of layer norms to fp32, as on a GPU."""

    def in_fp32(x: Tensor, *others: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.ops.aten.layer_norm(x.float(), *others)

    library = torch.library.Library("aten", "IMPL")
    library.impl("layer_norm", in_fp32, "AutocastCPU")
    yield
    library._destroy()


class _Activations(TorchDispatchMode):
    """Counts the operators with an activation of a residual block as output, by name and type."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, torch.dtype]] = Counter()
        self._size = size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) else out
        is_view = any(returned.alias_info is not None for returned in func._schema.returns)
        if isinstance(first, Tensor) and first.numel() >= self._size and not is_view:
            self.counts[func.overloadpacket.__name__, first.dtype] += 1
        return out


def test_activations_of_a_block_stay_in_bf16_and_are_not_copied(autocast_of_a_gpu):
    block = ResBlock(8, 1, "group")
    tokenizer = make()
    tokenizer.encoder.stages[0] = block
    use_training_layers(tokenizer)
    x = torch.rand(2, 5, 8, 8, 8, requires_grad=True)
    with _Activations(x.numel()) as seen:
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x.bfloat16(), TemporalCache())
        y.backward(torch.ones_like(y))
    both = {
        "native_layer_norm": 2,
        "native_layer_norm_backward": 2,
        "silu": 2,
        "silu_backward": 2,
        "convolution": 2,
        "convolution_backward": 2,
        # The input after its first frame, repeated, and its gradient.
        "cat": 2,
        # The residual, its gradient, and the bias, which a kernel on a GPU adds.
        "add": 3,
    }
    casts = {("_to_copy", torch.bfloat16): 1, ("_to_copy", torch.float32): 1, ("ones_like", torch.bfloat16): 1}
    assert seen.counts == {(name, torch.bfloat16): count for name, count in both.items()} | casts
