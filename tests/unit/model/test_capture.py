"""Recording of calls as CUDA graphs, with stand-ins for what needs a CUDA device."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.step_shape import StepShape


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[object, int]]:
    """Pool and stream of each recording. A replay computes nothing, so results are those of the recorded input."""
    found = []

    @contextmanager
    def graph(_graph, pool=None, stream=None):
        found.append((pool, id(stream)))
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    return found


def make() -> VideoTokenizer:
    small = StackConfig((8, 8), (1, 1))
    config = TokenizerConfig(encoder=small, decoder=DecoderConfig(small.channels, small.blocks))
    tokenizer = VideoTokenizer(config).eval()
    tokenizer.step_shape = tokenizer.decode_shape = StepShape(1, 2)
    tokenizer.compile_steps(capture=True)
    return tokenizer


def test_the_graphs_of_a_tokenizer_share_their_memory(recorded):
    tokenizer = make()
    for size in (16, 32):
        tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 9, size, size)))
    # Encoding and decoding, the first step and a later one, of two sizes.
    assert len(recorded) == 8 and len(set(recorded)) == 1
    make().encode(torch.zeros(1, 3, 5, 16, 16))
    assert len(set(recorded)) == 2


def test_a_call_recorded_in_inference_mode_is_replayed_outside_of_it_and_back(recorded):
    tokenizer, video = make(), torch.zeros(1, 3, 5, 16, 16)
    with torch.inference_mode():
        codes = tokenizer.encode(video)
    assert torch.equal(tokenizer.encode(video), codes)
    with torch.inference_mode():
        assert torch.equal(tokenizer.encode(video.clone()), codes)
    assert len(recorded) == 1
