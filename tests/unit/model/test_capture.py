"""Recording of calls as CUDA graphs, with stand-ins for what needs a CUDA device."""

import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.capture import CapturedCall
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.pixels import normalize
from vidvq.model.step_shape import StepShape


class Graph(TorchDispatchMode):
    """Records operators with the tensors that they read and write, and runs them again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.operators.append((operator, args, kwargs or {}, result))
        return result

    @torch.inference_mode(False)
    @torch.no_grad()
    def replay(self) -> None:
        for operator, args, kwargs, result in self.operators:
            for found, written in zip(*map(tree_leaves, (operator(*args, **kwargs), result)), strict=True):
                if isinstance(found, torch.Tensor) and found.data_ptr() != written.data_ptr():
                    written.copy_(found)


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[object, int]]:
    """Pool and stream of each recording."""
    found = []

    @contextmanager
    def graph(recording, pool=None, stream=None):
        found.append((pool, id(stream)))
        with recording:
            yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    return found


def make(capture: bool = True, **settings: Any) -> VideoTokenizer:
    small = StackConfig((8, 8), (1, 1))
    config = TokenizerConfig(encoder=small, decoder=DecoderConfig(small.channels, small.blocks), **settings)
    tokenizer = VideoTokenizer(config).eval()
    with torch.no_grad():
        for name, weight in tokenizer.named_parameters():
            # A new residual block is the identity and has no past.
            if name.endswith("mix.weight"):
                weight.normal_(std=0.1)
    tokenizer.step_shape = tokenizer.decode_shape = StepShape(1, 2)
    tokenizer.compile_steps(capture=capture)
    return tokenizer


def test_the_graphs_of_a_tokenizer_share_their_memory(recorded):
    tokenizer = make()
    for size in (16, 32):
        tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 9, size, size)))
    # Encoding and decoding, the first step and a later one, of two sizes.
    assert len(recorded) == 8 and len(set(recorded)) == 1
    make().encode(torch.zeros(1, 3, 5, 16, 16))
    assert len(set(recorded)) == 2


def test_tiles_of_one_stream_are_encoded_by_the_recorded_call(recorded):
    tokenizer = make(tile=32)
    video = torch.rand(1, 3, 5, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tokenizer.encode(video)
    # One shape for all tiles.
    assert len(recorded) == 1
    plain = make(capture=False, tile=32)
    plain.load_state_dict(tokenizer.state_dict())
    assert (plain.encode(video) == codes).float().mean() > 0.99


@pytest.mark.parametrize("room", [0, 1, 2])
def test_graphs_of_other_shapes_make_room_for_a_new_one(recorded, monkeypatch, room):
    tokenizer, alive, kept, freed = make(), weakref.WeakSet(), [0], []
    call = tokenizer._stream_encoder.call
    assert isinstance(call, CapturedCall)
    record = call._record

    def limited(first, inputs):
        if len(alive) >= room:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        made = record(first, inputs)
        alive.add(made.graph)
        kept[0] = max(kept[0], len(alive))
        return made

    monkeypatch.setattr(call, "_record", limited)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(len(alive)))
    videos = [torch.rand(1, 3, 5, size, 16) * 2 - 1 for size in (16, 24, 32)]
    if not room:
        with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
            tokenizer.encode(videos[0])
        return
    plain = make(capture=False)
    plain.load_state_dict(tokenizer.state_dict())
    for video in videos:
        assert torch.equal(tokenizer.encode(video), plain.encode(video))
    assert kept[0] == room and freed == [0] * (2 if room == 1 else 1)
    # A pool whose graphs are all deleted is not used again.
    pools = [pool for pool, _ in recorded]
    assert len(set(pools)) == 1 + len(freed)


def test_a_call_recorded_in_inference_mode_is_replayed_outside_of_it_and_back(recorded):
    tokenizer, video = make(), torch.zeros(1, 3, 5, 16, 16)
    with torch.inference_mode():
        codes = tokenizer.encode(video)
    assert torch.equal(tokenizer.encode(video), codes)
    with torch.inference_mode():
        assert torch.equal(tokenizer.encode(video.clone()), codes)
    assert len(recorded) == 1


def test_bytes_and_floats_have_graphs_of_their_own(recorded):
    tokenizer, pixels = make(), torch.randint(256, (1, 3, 5, 16, 24), dtype=torch.uint8)
    codes = tokenizer.encode(normalize(pixels))
    assert torch.equal(tokenizer.encode_step(pixels)[0], codes) and len(codes.unique()) > 4
    assert len(recorded) == 2


def test_replays_give_the_results_of_calls_and_overwrite_none(recorded):
    torch.manual_seed(0)
    captured = make()
    plain = make(capture=False)
    plain.load_state_dict(captured.state_dict())
    # Two streams at a time, of four groups after the first: later steps replay the graph of the second one.
    videos = [torch.rand(2, 3, 17, 16, 24) * 2 - 1 for _ in range(3)]
    codes = [captured.encode(video) for video in videos]
    frames = [captured.decode(each) for each in codes]
    for video, found, decoded in zip(videos, codes, frames, strict=True):
        assert torch.equal(found, plain.encode(video))
        assert torch.equal(decoded, plain.decode(found))
    assert len(codes[0].unique()) > 10 and not torch.equal(codes[0], codes[1])
    first, state = captured.encode_step(videos[0][:1, :, :5])
    rest = [captured.encode_step(video[:1, :, 5:13], state)[0] for video in videos[:2]]
    assert torch.equal(torch.cat([first, rest[0]], dim=1), codes[0][:1, :4])
    assert not torch.equal(rest[0], rest[1])
