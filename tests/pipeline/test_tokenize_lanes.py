"""Streams that are stepped together: their tokens depend on the batch's size and on nothing that is in it."""

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.decoders import decode_or_crash
from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens
from vidvq.jobs.timing import Stopwatch
from vidvq.model import Tokenizer, TokenizerConfig, VideoTokenizer, iter_encode
from vidvq.model.encoder import StackConfig
from vidvq.model.quantize import QuantizerConfig, VQConfig
from vidvq.pretrained import load_tokenizer
from vidvq.tokenize.encode import stream
from vidvq.tokenize.lanes import run_lanes

INLINE = "runtime.workers=0"
CHUNK = 8


def a_video(seed: int, num_frames: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def chunks_of(video: np.ndarray) -> list[np.ndarray]:
    edges = [0, *range(1 + CHUNK, len(video), CHUNK), len(video)]
    return [video[start:stop] for start, stop in pairwise(edges)]


def encode_in_lanes(tokenizer: Tokenizer, lanes: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """The codes of all videos, lane by lane."""
    found: list[list[np.ndarray]] = [[] for _ in lanes]

    def lane(place: int):
        for video in lanes[place]:
            found[place].append((yield from stream(tokenizer, chunks_of(video))))

    run_lanes(tokenizer, [lane(place) for place in range(len(lanes))], Stopwatch())
    return found


@pytest.fixture(scope="module")
def tokenizer(checkpoint_dir) -> Tokenizer:
    return load_tokenizer(checkpoint_dir)[0]


@pytest.fixture(scope="module")
def tiled_tokenizer() -> Tokenizer:
    """One whose frames are cut into several tiles."""
    torch.manual_seed(0)
    small = StackConfig((8, 8), (1, 1))
    books = QuantizerConfig(4, VQConfig(size=32), VQConfig(size=64))
    return VideoTokenizer(TokenizerConfig(encoder=small, decoder=small, quantizer=books, tile=16)).eval()


def encode_alone(tokenizer: Tokenizer, video: np.ndarray) -> np.ndarray:
    return torch.cat(list(iter_encode(tokenizer, chunks_of(video)))).numpy()


# Ragged lengths, short tails, sizes that are no multiple of the spatial factor, and lanes that end early.
LANES = [
    [a_video(0, 21, 32, 40), a_video(1, 1, 32, 40), a_video(2, 9, 24, 24)],
    [a_video(3, 6, 32, 40)],
    [a_video(4, 33, 24, 24), a_video(5, 10, 30, 35)],
    [],
]


def test_what_else_is_in_the_batch_changes_no_token(tokenizer):
    together = encode_in_lanes(tokenizer, LANES)
    for place, videos in enumerate(LANES):
        alone = encode_in_lanes(tokenizer, [videos if other == place else [] for other in range(len(LANES))])[place]
        assert len(alone) == len(videos)
        for one, other, video in zip(alone, together[place], videos, strict=True):
            assert one.shape == tokenizer.latent_shape(*video.shape[:3])
            assert np.array_equal(one, other)


def test_streams_whose_frames_are_cut_into_tiles_are_stepped_together(tiled_tokenizer):
    """Tiles go through the network one by one, so the tokens are those of each stream by itself, to the bit."""
    lanes = [[a_video(0, 13, 48, 120)], [a_video(1, 21, 48, 120)], [], [a_video(2, 6, 48, 120)]]
    for videos, found in zip(lanes, encode_in_lanes(tiled_tokenizer, lanes), strict=True):
        for video, codes in zip(videos, found, strict=True):
            assert np.array_equal(codes, encode_alone(tiled_tokenizer, video))


def test_a_long_stream_keeps_its_codes_as_small_as_they_are_written(tokenizer):
    groups = np.zeros((8, 64, 64), dtype=np.int64)
    steps = stream(tokenizer, (np.zeros((1 + 4 * 8, 8, 8, 3), np.uint8) for _ in range(200)), np.uint16)
    tracemalloc.start()
    next(steps)
    for _ in range(190):
        steps.send((groups.copy(), "state"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.1 * 190 * groups.size * np.uint16().itemsize


def test_they_are_the_tokens_of_each_stream(tokenizer):
    """But for latents midway between two codes: a batch's kernels may round otherwise."""
    for videos, found in zip(LANES, encode_in_lanes(tokenizer, LANES), strict=True):
        for video, codes in zip(videos, found, strict=True):
            assert (codes == encode_alone(tokenizer, video)).mean() > 0.999


def test_all_batches_have_one_size(tokenizer, monkeypatch):
    sizes = []
    step = VideoTokenizer.encode_step

    def spy(self, frames, state=None, batched=False):
        sizes.append((len(frames), batched))
        return step(self, frames, state, batched)

    monkeypatch.setattr(VideoTokenizer, "encode_step", spy)
    encode_in_lanes(tokenizer, LANES)
    assert set(sizes) == {(4, True)}
    steps = sum(1 + (len(video) > 1) + max(len(video) - 2, 0) // CHUNK for lane in LANES for video in lane)
    assert len(sizes) < steps  # streams of one size did share steps


def samples(folder: Path) -> dict[str, np.ndarray]:
    card = read_tokenizer_card(folder)
    return {key: codes for shard in sorted(folder.glob("*.tar")) for key, codes, _ in read_tokens(shard, card)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video) -> Path:
    """Two sizes, lengths that no gop divides, and no video."""
    folder = tmp_path_factory.mktemp("lanes")
    make_video(folder / "a.mp4", 50)
    make_video(folder / "b.mp4", 23, size=(48, 48))
    make_video(folder / "c.mp4", 31)
    (folder / "bad.mp4").write_text("no video")
    return folder


SETTINGS = ("video.short_side=32", "video.multiple=8", "gop_frames=9", "items_per_shard=7", "max_failed=1")


@pytest.mark.parametrize("gop", ["gop_frames=9", "gop_frames=null"])
def test_workers_change_no_byte_of_batched_shards(vidvq, videos, checkpoint_dir, tmp_path, snapshot, gop):
    for name, *settings in (("inline", "batch=3", INLINE), ("ray", "batch=3", "runtime.workers=2"), ("alone", INLINE)):
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / name)
        assert vidvq("tokenize", videos, *where, *SETTINGS, gop, "quality.share=0.5", *settings).code == 0
    assert snapshot(tmp_path / "inline") == snapshot(tmp_path / "ray")
    assert vidvq("verify", tmp_path / "inline").code == 0
    batched, alone = samples(tmp_path / "inline"), samples(tmp_path / "alone")
    assert list(batched) == list(alone)  # in the order of the plan
    for key, codes in batched.items():
        assert (codes == alone[key]).mean() > 0.999
    assert read_plan(tmp_path / "inline").made_from["batch"] == 3
    assert "batch" not in read_plan(tmp_path / "alone").made_from
    # Another batch may round otherwise: it is another job.
    where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / "inline")
    assert "batch" in vidvq("tokenize", videos, *where, *SETTINGS, gop, "quality.share=0.5", INLINE).error


def test_a_lane_whose_decoder_dies_costs_one_item_and_no_other_token(
    vidvq, videos, checkpoint_dir, tmp_path, monkeypatch
):
    def run(name: str) -> dict[str, np.ndarray]:
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / name)
        assert vidvq("tokenize", videos, *where, *SETTINGS, "batch=3", INLINE).code == 0
        return samples(tmp_path / name)

    whole = run("whole")
    monkeypatch.setattr("vidvq.tokenize.worker.decode_items", decode_or_crash)
    crashed = run("crashed")
    assert json.loads((tmp_path / "crashed/summary.json").read_bytes())["failed"]["decoder_died"]["count"] == 3
    assert list(crashed) == [key for key in whole if not key.endswith("-00002")]
    assert all(np.array_equal(codes, whole[key]) for key, codes in crashed.items())
