"""Step shapes: equal shapes give equal tokens, whatever the batch and the chunks; one call has few kernels."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from vidvq.errors import UsageError
from vidvq.model import TokenizerConfig, VideoTokenizer, iter_decode, iter_encode
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.launches import LaunchCounter
from vidvq.model.pixels import to_frames, to_video
from vidvq.model.quantize import QuantizerConfig, VQConfig
from vidvq.model.step_shape import StepShape
from vidvq.model.streaming import prepare_step

ROOT = Path(__file__).parents[3]

FRAMES = np.random.default_rng(0).integers(0, 256, (14, 20, 36, 3), dtype=np.uint8)


def make_tokenizer(shape: StepShape, tile: int = 1024) -> VideoTokenizer:
    torch.manual_seed(0)
    small = StackConfig((16, 24), (1, 1))
    books = QuantizerConfig(4, VQConfig(size=32), VQConfig(size=64))
    tokenizer = VideoTokenizer(
        TokenizerConfig(encoder=small, decoder=DecoderConfig(small.channels, small.blocks), quantizer=books, tile=tile)
    ).eval()
    with torch.no_grad():
        for name, parameter in tokenizer.named_parameters():
            # A new residual block is the identity and has no past.
            if name.endswith("time.mix.weight"):
                parameter.normal_(std=0.1)
    tokenizer.step_shape = tokenizer.decode_shape = shape
    return tokenizer


every_shape = pytest.mark.parametrize(
    ("shape", "tile"),
    [(StepShape(1, 3), 1024), (StepShape(3, 1), 1024), (StepShape(3, 2), 1024), (StepShape(2, 3), 16)],
)


@every_shape
@pytest.mark.parametrize("sizes", [(), (5,), (1, 4, 4)], ids=str)
def test_chunks_change_no_token(shape, tile, sizes):
    tokenizer = make_tokenizer(shape, tile)
    edges = [0, *np.cumsum(sizes, dtype=int), len(FRAMES)]
    parts = list(iter_encode(tokenizer, [FRAMES[start:stop] for start, stop in pairwise(edges)]))
    assert torch.equal(torch.cat(parts), tokenizer.encode(to_video(FRAMES))[0])
    assert {len(part) for part in parts[1:-1]} <= {shape.groups} or shape.groups == 1


@every_shape
def test_the_batch_changes_no_token_and_no_frame(shape, tile):
    tokenizer = make_tokenizer(shape, tile)
    video = to_video(FRAMES)
    batch = torch.cat([video, video.flip(2), -video, video.flip(3)])
    codes = tokenizer.encode(batch)
    assert torch.equal(tokenizer.encode(video), codes[:1])
    assert torch.equal(tokenizer.encode_tiled(batch), codes)
    decoded = tokenizer.decode(codes, 14, (20, 36))
    assert torch.equal(tokenizer.decode(codes[:1], 14, (20, 36)), decoded[:1])
    assert np.array_equal(np.concatenate(list(iter_decode(tokenizer, codes[0], 14, (20, 36)))), to_frames(decoded[:1]))
    # Other shapes differ by rounding alone.
    other = make_tokenizer(StepShape(), tile)
    assert (other.encode(batch) == codes).float().mean() > 0.999
    torch.testing.assert_close(other.decode(codes, 14, (20, 36)), decoded, atol=1e-4, rtol=0)


def test_a_stream_ends_with_its_first_short_step():
    tokenizer, video = make_tokenizer(StepShape(1, 3)), to_video(np.concatenate([FRAMES] * 2))[..., :16, :32]
    codes, state = tokenizer.encode_step(video[:, :, :9])
    assert codes.shape[1] == 3
    short, ended = tokenizer.encode_step(video[:, :, 9:17], state)
    assert short.shape[1] == 2
    with pytest.raises(ValueError, match="ended with a step of fewer than 3 groups"):
        tokenizer.encode_step(video[:, :, 17:21], ended)
    # The groups after the end were padding: two groups, or the same two and a third.
    whole, _ = tokenizer.encode_step(video[:, :, 9:21], state)
    assert torch.equal(whole[:, :2], short)


def test_an_ended_stream_has_no_frames_left():
    tokenizer, codes = make_tokenizer(StepShape(1, 3)), torch.zeros(1, 2, 2, 4, dtype=torch.long)
    _, ended = tokenizer.decode_step(codes)
    with pytest.raises(UsageError, match="ended with a step of fewer than 3 groups"):
        tokenizer.decode_step(codes, ended)
    assert tokenizer.decode_rest(ended).shape == (1, 3, 0, 16, 32)


def test_a_state_holds_no_more_memory_than_its_frames():
    tokenizer = make_tokenizer(StepShape(1, 4))
    _, state = tokenizer.encode_step(to_video(FRAMES)[:, :, :13, :16, :32])
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.past)


def test_large_frames_take_fewer_streams_then_fewer_groups():
    shape = StepShape(8, 9, max_pixels=8 * 9 * 4 * 64 * 64)
    assert str(shape.for_frames(64, 64, 4)) == "8x9"
    assert str(shape.for_frames(128, 64, 4)) == "4x9"
    assert str(shape.for_frames(512, 128, 4)) == "1x4"
    assert str(shape.for_frames(4096, 4096, 4)) == "1x1"
    assert str(StepShape(1, 8, max_pixels=8 * 4 * 64 * 64).for_frames(64, 64, 4)) == "1x8"
    for name in ("streams", "groups", "max_pixels"):
        with pytest.raises(UsageError, match=f"{name}=0 must be 1 or more"):
            StepShape(**{name: 0})


@pytest.mark.parametrize(("streams", "bound"), [(1, 4), (8, 1)])
def test_kernels_per_frame(streams, bound):
    tokenizer = make_tokenizer(StepShape(streams, 9))
    video = torch.zeros(streams, 3, 33, 16, 16)
    with LaunchCounter() as counted:
        codes, _ = tokenizer.encode_step(video)
    assert counted.kernels.total() / (33 * streams) <= bound, counted.kernels
    with LaunchCounter() as counted:
        tokenizer.decode_step(codes)
    assert counted.kernels.total() / (33 * streams) <= bound, counted.kernels


def test_pixels_travel_as_bytes():
    tokenizer = make_tokenizer(StepShape(2, 3)).to("meta")
    pixels = torch.zeros(2, 9, 20, 36, 3, dtype=torch.uint8)
    with LaunchCounter() as counted:
        video = prepare_step(tokenizer, pixels, None)
    assert counted.bytes_to_device == pixels.numel()
    assert (video.shape, video.dtype) == ((2, 3, 9, 24, 40), torch.uint8)


def test_frames_that_are_no_bytes_are_refused():
    with pytest.raises(UsageError, match="they must be uint8"):
        list(iter_encode(make_tokenizer(StepShape()), [FRAMES / np.float32(255)]))


@pytest.mark.slow
def test_the_counts_of_a_gpu_step_hold():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/launches.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["encode_kernels_per_frame"] <= 2 and counts["decode_kernels_per_frame"] <= 4
    assert counts["h2d_bytes_per_frame"] == counts["device_reads_per_step"] == 1
    assert counts["graph_breaks"] == 0


def test_tiles_are_decoded_by_the_calls_that_are_compiled():
    tokenizer = VideoTokenizer(TokenizerConfig(tile=16)).eval()
    codes = tokenizer.encode(torch.rand(1, 3, 5, 16, 256) * 2 - 1)
    expected = tokenizer.decode(codes)
    calls = []

    def count(call):
        return lambda *given: (calls.append(1), call(*given))[1]

    decoder = tokenizer._stream_decoder
    decoder.call = count(decoder.call)
    assert torch.equal(tokenizer.decode(codes), expected)
    tiles = len(decoder.tiles(2, 32).spans)
    # Of two groups.
    assert tiles > 1 and len(calls) == 2 * tiles
