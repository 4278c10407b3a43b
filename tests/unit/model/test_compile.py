"""Steps under torch.compile: one graph, no recompilation, the same tokens."""

import numpy as np
import pytest
import torch
from einops import rearrange

from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.compilation import compile_graph
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import (
    DifferentialConfig,
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    SimVQConfig,
    VQConfig,
)

CODEBOOKS = {
    "vq": VQConfig(size=32),
    "simvq": SimVQConfig(size=32),
    "fsq": FSQConfig(levels=(4, 3, 3)),
    "bsq": LFQConfig(size=32, spherical=True),
    "residual": ResidualConfig(depth=2, layer=VQConfig(size=4)),
}
DIFFERENCES = QuantizerConfig(4, VQConfig(size=32), VQConfig(size=32), DifferentialConfig())


def make(codebook, **changes) -> VideoTokenizer:
    torch.manual_seed(0)
    small = StackConfig((8, 8), (1, 1))
    books = {"quantizer": QuantizerConfig(4, codebook, codebook)} | changes
    config = TokenizerConfig(encoder=small, decoder=DecoderConfig(small.channels, small.blocks), **books)
    return VideoTokenizer(config).eval()


# By default, test_compile_training.py compiles the steps that jobs take.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in CODEBOOKS),
        ("vq", {"tile": 16}),
        ("vq", {"quantizer": DIFFERENCES}),
        ("vq", {"quantizer": DIFFERENCES, "tile": 16}),
    ],
)
def test_steps_compile_to_one_graph_and_do_not_recompile(kind, changes):
    torch.compiler.reset()
    tokenizer = make(CODEBOOKS[kind], **changes)
    graphs = 0

    def count(module, _):
        nonlocal graphs
        graphs += 1
        return module

    encode = torch.compile(tokenizer.encode_step, fullgraph=True, backend=count)
    decode = torch.compile(tokenizer.decode_step, fullgraph=True, backend=count)
    # Two tiles where there are tiles.
    video = torch.rand(1, 3, 17, 16, 96) * 2 - 1
    parts, state = [], None
    for frames in video.split([1, 4, 4, 4, 4], dim=2):
        codes, state = encode(frames, state)
        parts.append(codes)
    codes = torch.cat(parts, dim=1)
    assert torch.equal(codes, tokenizer.encode(video))
    frames, state = [], None
    for part in parts:
        decoded, state = decode(part, state)
        frames.append(decoded)
    torch.testing.assert_close(torch.cat(frames, dim=2), tokenizer.decode(codes))
    # Of each: the first frame, a step, and a step after any number of them.
    assert graphs <= 6


def test_a_graph_is_not_compiled_again_as_einops_meets_other_types(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr("einops._backends._type2backend", {})
    graphs = 0

    def count(module, _):
        nonlocal graphs
        graphs += 1
        return module

    merge = compile_graph(lambda x: rearrange(x, "a b -> (a b)"), backend=count)
    merge(torch.zeros(2, 3))
    rearrange(np.zeros((2, 3)), "a b -> b a")
    assert merge(torch.ones(2, 3)).shape == (6,)
    assert graphs == 1


@pytest.mark.slow
def test_the_networks_compile_with_inductor():
    """Tokens are those of eager mode, but where a sum that is rounded otherwise decides between two codes."""
    torch.compiler.reset()
    tokenizer, video = make(CODEBOOKS["vq"]), torch.rand(1, 3, 9, 32, 32) * 2 - 1
    codes = tokenizer.encode(video)
    tokenizer.encoder.compile(fullgraph=True)
    assert (tokenizer.encode(video) == codes).float().mean() > 0.95
