"""Streaming: selecting and stacking states; chunked results equal those of whole videos."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from vidvq.codebook import Codebook
from vidvq.model import StreamState, Tokenizer, TokenizerConfig, VideoTokenizer, iter_decode, iter_encode
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.pixels import to_frames, to_video
from vidvq.model.quantize import DifferentialConfig, QuantizerConfig, VQConfig


def make_tokenizer(tile: int = 1024, seed: int = 0, differential: DifferentialConfig | None = None) -> VideoTokenizer:
    torch.manual_seed(seed)
    small = StackConfig((16, 24), (1, 1))
    books = QuantizerConfig(4, VQConfig(size=32), VQConfig(size=64), differential)
    tokenizer = VideoTokenizer(
        TokenizerConfig(encoder=small, decoder=DecoderConfig(small.channels, small.blocks), quantizer=books, tile=tile)
    ).eval()
    with torch.no_grad():
        for name, parameter in tokenizer.named_parameters():
            # A fresh residual block is the identity and would see no past.
            if name.endswith("time.mix.weight"):
                parameter.normal_(std=0.1)
    return tokenizer


class WholeVideos(Tokenizer):
    """A tokenizer without streaming: the mean of each 4x8x8 block, in 16 levels."""

    temporal_factor, spatial_factor = 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls: list[tuple[int, ...]] = []

    @property
    def codebooks(self) -> list[Codebook]:
        return [Codebook("joint", 16, 0)]

    def encode(self, video: Tensor) -> Tensor:
        self.calls.append(tuple(video.shape))
        padded = self.pad(video)
        groups = torch.cat([padded[:, :, :1].expand(-1, -1, 4, -1, -1), padded[:, :, 1:]], dim=2)
        return ((torch.nn.functional.avg_pool3d(groups, (4, 8, 8)).mean(dim=1) + 1) * 7.9).long()

    def decode(self, codes: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        self._check_codes(codes, first=True)
        self.calls.append(tuple(codes.shape))
        t, h, w = self.crop_size(codes.shape[1:], num_frames, size)
        video = (codes / 7.9 - 1)[:, None].expand(-1, 3, -1, -1, -1)
        return torch.nn.functional.interpolate(video, scale_factor=(4.0, 8.0, 8.0))[:, :, 3:][:, :, :t, :h, :w]


TOKENIZERS = {
    "streams": make_tokenizer(),
    "tiled": make_tokenizer(tile=16),
    "differences": make_tokenizer(tile=16, differential=DifferentialConfig()),
    "refresh": make_tokenizer(tile=16, differential=DifferentialConfig(refresh=VQConfig(size=64))),
    "whole": WholeVideos(),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
FRAMES = np.random.default_rng(0).integers(0, 256, (15, 45, 101, 3), dtype=np.uint8)


def chunks_of(frames: np.ndarray, *sizes: int) -> list[np.ndarray]:
    edges = np.cumsum([0, *sizes, len(frames) - sum(sizes)])
    return [frames[start:stop] for start, stop in pairwise(edges) if stop > start]


@every_tokenizer
@pytest.mark.parametrize("sizes", [(), (1,), (5,), (9, 4), (1, 4, 4, 4), (13,), (3, 7), (1, 2, 6)], ids=str)
def test_chunked_encoding_equals_whole_encoding(tokenizer, sizes):
    parts = list(iter_encode(tokenizer, iter(chunks_of(FRAMES, *sizes))))
    assert torch.equal(torch.cat(parts), tokenizer.encode(to_video(FRAMES))[0])
    assert tokenizer.supports_streaming or len(parts) == 1


def test_chunks_without_frames_are_skipped():
    codes = list(iter_encode(TOKENIZERS["streams"], [FRAMES[:0], FRAMES[:5], FRAMES[:0]]))
    assert torch.equal(torch.cat(codes), TOKENIZERS["streams"].encode(to_video(FRAMES[:5]))[0])


@every_tokenizer
def test_frames_with_reversed_channels_are_encoded(tokenizer):
    parts = [frames[..., ::-1] for frames in (FRAMES[:5], FRAMES[5:])]
    codes = torch.cat(list(iter_encode(tokenizer, parts)))
    assert torch.equal(codes, tokenizer.encode(to_video(FRAMES[..., ::-1]))[0])
    assert torch.equal(codes, tokenizer.encode(to_video(FRAMES[..., ::-1].copy()))[0])


def test_frames_of_another_type_are_named():
    with pytest.raises(
        ValueError, match="frames are a ndarray of >u2; they must be a tensor or a NumPy array of uint8"
    ):
        to_video(FRAMES.astype(">u2"))


@pytest.mark.parametrize("frames", ["video.mp4", None, {}], ids=str)
def test_frames_that_are_no_array_are_refused(frames):
    with pytest.raises(ValueError, match=f"frames are a {type(frames).__name__}; they must be a tensor or a NumPy"):
        to_video(frames)


@every_tokenizer
def test_frame_0_alone_is_a_video(tokenizer):
    (codes,) = iter_encode(tokenizer, [FRAMES[:1]])
    assert torch.equal(codes, tokenizer.encode(to_video(FRAMES[:1]))[0])
    (frames,) = iter_decode(tokenizer, codes, 1, (45, 101))
    assert frames.shape == (1, 45, 101, 3)


@every_tokenizer
@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.int64, "tensor"])
def test_decoding_by_group_equals_whole_decoding(tokenizer, kind):
    codes = tokenizer.encode(to_video(FRAMES))
    grid = codes[0] if kind == "tensor" else codes[0].numpy().astype(kind)
    parts = list(iter_decode(tokenizer, grid, 15, (45, 101)))
    whole = tokenizer.decode(codes, 15, (45, 101))
    assert np.array_equal(np.concatenate(parts), to_frames(whole))
    assert [len(part) for part in parts] == ([1, 4, 4, 4, 2] if tokenizer.supports_streaming else [15])


@every_tokenizer
def test_codes_are_integers_in_any_memory_layout(tokenizer):
    codes = tokenizer.encode(to_video(FRAMES))[0]
    with pytest.raises(ValueError, match="codes are torch.float32 .*; they must be integers"):
        next(iter_decode(tokenizer, codes.float(), 15, (45, 101)))
    reverse = codes.flip(2).numpy()[:, :, ::-1]
    found, expected = (list(iter_decode(tokenizer, given, 15, (45, 101))) for given in (reverse, codes))
    assert all(np.array_equal(*parts) for parts in zip(found, expected, strict=True))


@every_tokenizer
@pytest.mark.parametrize(("length", "size"), [(18, (45, 101)), (15, (49, 101)), (13, (45, 101))])
def test_codes_of_another_shape_are_rejected(tokenizer, length, size):
    codes = tokenizer.encode(to_video(FRAMES))[0]
    with pytest.raises(ValueError, match="do not become a grid of 5x6x13 codes"):
        next(iter_decode(tokenizer, codes, length, size))


@pytest.mark.parametrize("differential", [None, DifferentialConfig()], ids=["each", "differences"])
@pytest.mark.parametrize("tile", [1024, 16], ids=["whole", "tiled"])
def test_streams_can_move_between_batches(tile, differential):
    tokenizer = make_tokenizer(tile, differential=differential)
    video = to_video(FRAMES)[:, :, :13, :40, :96]
    batch = torch.cat([video, video.flip(2), -video])
    codes = tokenizer.encode(batch)
    _, started = tokenizer.encode_step(batch[:, :, :1])
    # Another order, and an empty slot between.
    order = [2, None, 0]
    state = StreamState.stack([None if index is None else started.select(index) for index in order])
    assert state is not None and state.shape == (3, 40, 96)
    frames = torch.zeros(3, 3, 12, 40, 96)
    frames[0], frames[2] = batch[2, :, 1:], batch[0, :, 1:]
    found, after = tokenizer.encode_step(frames, state)
    assert torch.equal(found[[0, 2]], codes[[2, 0], 1:])
    assert after.select(1).shape == (1, 40, 96)
    # By itself again, and into decoding streams alike.
    _, decoding = tokenizer.decode_step(codes[:, :1])
    alone, _ = tokenizer.decode_step(codes[1:2, 1:], decoding.select(1))
    assert torch.equal(alone, tokenizer.decode(codes[1:2])[:, :, 1:])


def test_stacking_only_empty_slots_gives_no_state():
    assert StreamState.stack([None, None]) is None


def test_incompatible_states_are_rejected():
    tokenizer, video = make_tokenizer(), to_video(FRAMES)[:, :, :1]
    codes, encoding = tokenizer.encode_step(video[..., :40, :96])
    other = [
        tokenizer.decode_step(codes)[1],
        tokenizer.encode_step(video[..., :32, :96])[1],
        make_tokenizer(tile=16).encode_step(video[..., :40, :96])[1],
    ]
    for state in other:
        with pytest.raises(ValueError, match="cannot be stacked"):
            StreamState.stack([encoding, None, state])
    with pytest.raises(ValueError, match="none of them ended or all"):
        StreamState.stack([encoding, replace(encoding, ended=True)])
    for index in (1, -1):
        with pytest.raises(IndexError, match="must be from 0 to 0"):
            encoding.select(index)
