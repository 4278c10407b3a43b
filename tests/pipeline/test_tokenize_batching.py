"""Batched encoding of streams: tokens depend on the size of the batch, and not on the other streams in it."""

import json
import tracemalloc
from copy import copy
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.decoders import decode_or_crash
from vidvq.formats.plan import read_plan
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens
from vidvq.jobs.timing import Stopwatch
from vidvq.model import Tokenizer, TokenizerConfig, VideoTokenizer, capture, iter_encode
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import QuantizerConfig, VQConfig
from vidvq.model.step_shape import StepShape
from vidvq.pretrained import load_tokenizer
from vidvq.tokenize import batching
from vidvq.tokenize.batching import run_slots
from vidvq.tokenize.encode import sample_steps

INLINE = "runtime.workers=0"
CHUNK = 8


def make_frames(seed: int, num_frames: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def chunks_of(video: np.ndarray) -> list[np.ndarray]:
    edges = [0, *range(1 + CHUNK, len(video), CHUNK), len(video)]
    return [video[start:stop] for start, stop in pairwise(edges)]


def encode_in_slots(tokenizer: Tokenizer, slots: list[list[np.ndarray]], groups: int = 1) -> list[list[np.ndarray]]:
    """The codes of all videos, slot by slot, with a stream per slot in each call of the network."""
    tokenizer = copy(tokenizer)
    tokenizer.step_shape = StepShape(len(slots), groups)
    found: list[list[np.ndarray]] = [[] for _ in slots]

    def encode(slot: int):
        for video in slots[slot]:
            found[slot].append((yield from sample_steps(tokenizer, chunks_of(video)))())

    run_slots(tokenizer, [encode(slot) for slot in range(len(slots))], Stopwatch())
    return found


@pytest.fixture(scope="module")
def tokenizer(checkpoint_dir) -> Tokenizer:
    return load_tokenizer(checkpoint_dir)[0]


@pytest.fixture(scope="module")
def tiled_tokenizer() -> Tokenizer:
    """A tokenizer that encodes a frame in several tiles."""
    torch.manual_seed(0)
    small = StackConfig((8, 8), (1, 1))
    books = QuantizerConfig(4, VQConfig(size=32), VQConfig(size=64))
    return VideoTokenizer(
        TokenizerConfig(encoder=small, decoder=DecoderConfig(small.channels, small.blocks), quantizer=books, tile=16)
    ).eval()


def encode_alone(tokenizer: Tokenizer, video: np.ndarray) -> np.ndarray:
    return torch.cat(list(iter_encode(tokenizer, chunks_of(video)))).numpy()


# Ragged lengths, short tails, sizes that are not a multiple of the spatial factor, streams that start while others go
# on, and slots that end early.
SLOTS = [
    [make_frames(0, 21, 32, 40), make_frames(1, 1, 32, 40), make_frames(2, 9, 24, 24)],
    [make_frames(3, 6, 32, 40), make_frames(6, 9, 32, 40)],
    [make_frames(4, 33, 24, 24), make_frames(5, 10, 30, 35)],
    [],
]


@pytest.mark.parametrize("groups", [1, 3])
def test_other_streams_in_the_batch_change_no_token(tokenizer, groups):
    together = encode_in_slots(tokenizer, SLOTS, groups)
    for slot, videos in enumerate(SLOTS):
        only = [videos if other == slot else [] for other in range(len(SLOTS))]
        alone = encode_in_slots(tokenizer, only, groups)[slot]
        assert len(alone) == len(videos)
        for one, other, video in zip(alone, together[slot], videos, strict=True):
            assert one.shape == tokenizer.latent_shape(*video.shape[:3])
            assert np.array_equal(one, other)


def test_tiled_streams_in_a_batch_have_the_tokens_of_each_stream_alone(tiled_tokenizer):
    slots = [[make_frames(0, 13, 48, 120)], [make_frames(1, 21, 48, 120)], [], [make_frames(2, 6, 48, 120)]]
    for videos, found in zip(slots, encode_in_slots(tiled_tokenizer, slots), strict=True):
        for video, codes in zip(videos, found, strict=True):
            assert (codes == encode_alone(tiled_tokenizer, video)).mean() > 0.999


def test_a_long_stream_keeps_its_codes_as_small_as_they_are_written(tokenizer):
    groups = np.zeros((8, 64, 64), dtype=np.int64)
    steps = sample_steps(tokenizer, (np.zeros((1 + 4 * 8, 8, 8, 3), np.uint8) for _ in range(200)), np.uint16)
    tracemalloc.start()
    next(steps)
    for _ in range(190):
        steps.send((groups.copy, "state"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.1 * 190 * groups.size * np.uint16().itemsize


def test_batched_tokens_are_those_of_each_stream_alone(tokenizer):
    """Except for latents midway between two codes, since the kernels of a batch may round differently."""
    for videos, found in zip(SLOTS, encode_in_slots(tokenizer, SLOTS), strict=True):
        for video, codes in zip(videos, found, strict=True):
            assert (codes == encode_alone(tokenizer, video)).mean() > 0.999


def test_all_batches_have_one_size(tokenizer, monkeypatch):
    sizes = []
    step = VideoTokenizer.encode_step

    def spy(self, frames, state=None):
        sizes.append(len(frames))
        return step(self, frames, state)

    monkeypatch.setattr(VideoTokenizer, "encode_step", spy)
    encode_in_slots(tokenizer, SLOTS)
    assert set(sizes) == {4}
    steps = sum(1 + (len(video) > 1) + max(len(video) - 2, 0) // CHUNK for slot in SLOTS for video in slot)
    assert len(sizes) < steps  # so streams of one size shared steps


def samples(folder: Path) -> dict[str, np.ndarray]:
    card = read_tokenizer_card(folder)
    return {key: codes for shard in sorted(folder.glob("*.tar")) for key, codes, _ in read_tokens(shard, card)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video) -> Path:
    """Videos of two sizes, with lengths that are no multiple of the interval, and a file that is no video."""
    folder = tmp_path_factory.mktemp("slots")
    make_video(folder / "a.mp4", 50)
    make_video(folder / "b.mp4", 23, size=(48, 48))
    make_video(folder / "c.mp4", 31)
    (folder / "bad.mp4").write_text("no video")
    return folder


SETTINGS = ("video.short_side=32", "video.multiple=8", "gop_frames=9", "items_per_shard=7", "max_failed=1")


@pytest.mark.parametrize("gop", ["gop_frames=9", pytest.param("gop_frames=null", marks=pytest.mark.slow)])
def test_workers_change_no_byte_of_batched_shards(vidvq, videos, checkpoint_dir, tmp_path, snapshot, gop):
    for name, *settings in (("inline", "batch=3", INLINE), ("ray", "batch=3", "runtime.workers=2"), ("alone", INLINE)):
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / name)
        assert vidvq("tokenize", videos, *where, *SETTINGS, gop, "quality.share=0.5", *settings).code == 0
    assert snapshot(tmp_path / "inline") == snapshot(tmp_path / "ray")
    assert vidvq("verify", tmp_path / "inline").code == 0
    batched, alone = samples(tmp_path / "inline"), samples(tmp_path / "alone")
    assert list(batched) == list(alone)  # the order of the plan
    for key, codes in batched.items():
        assert (codes == alone[key]).mean() > 0.999
    assert read_plan(tmp_path / "inline").made_from["batch"] == 3
    assert "batch" not in read_plan(tmp_path / "alone").made_from
    # Another batch size may round differently, so it is another job.
    where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / "inline")
    assert "batch" in vidvq("tokenize", videos, *where, *SETTINGS, gop, "quality.share=0.5", INLINE).error


def test_recording_a_step_is_not_counted_as_encoding(tokenizer, monkeypatch):
    class Graph:
        def replay(self) -> None:
            pass

    def record(self, first, given):
        return capture._Graph(Graph(), given, *self._call(first, given[0], given[1:] or None))

    monkeypatch.setattr(capture.CapturedCall, "_record", record)
    monkeypatch.setattr(capture, "monotonic", count(0, 100).__next__)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    tokenizer = copy(tokenizer)
    tokenizer.compile_steps(capture=True)
    clock, video = Stopwatch(), make_frames(0, 9, 32, 32)
    seconds = []
    for _ in range(2):
        run_slots(tokenizer, [sample_steps(tokenizer, [video])], clock)
        seconds.append(clock.result(None).seconds)
    # Frame 0, and the groups after it.
    assert tokenizer.warmup_s == 200
    assert seconds[0]["warmup"] > 0 and seconds[1]["warmup"] == 0 < seconds[1]["encode"]


def test_codes_are_waited_for_after_the_next_step_is_queued(vidvq, clips_dir, checkpoint_dir, tmp_path, monkeypatch):
    events, pending_codes = [], batching.pending_codes

    def queue(codes):
        number, wait = sum(name == "queued" for name, _ in events), pending_codes(codes)
        events.append(("queued", number))
        return lambda: (events.append(("waited", number)), wait())[1]

    monkeypatch.setattr(batching, "pending_codes", queue)
    # Each clip is a step, so that the next step is that of the next clip.
    settings = ("--checkpoint", checkpoint_dir, "--out", tmp_path, INLINE, "batch=2", "groups=3")
    assert vidvq("tokenize", clips_dir, *settings).code == 0
    shards = len(list(read_plan(tmp_path).shard_names()))
    steps = sum(name == "queued" for name, _ in events)
    early = [n for n in range(steps - 1) if events.index(("waited", n)) < events.index(("queued", n + 1))]
    assert steps > shards and len(early) == shards - 1


def test_several_groups_per_call_are_recorded(vidvq, videos, checkpoint_dir, tmp_path):
    where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / "out", *SETTINGS, INLINE)
    assert vidvq("tokenize", videos, *where, "batch=2", "groups=2").code == 0
    assert vidvq("verify", tmp_path / "out").code == 0
    recorded = json.loads((tmp_path / "out/tokenizer.json").read_bytes())["execution"]
    assert recorded == read_plan(tmp_path / "out").made_from["execution"]
    assert [recorded[name] for name in ("device", "precision", "compiled", "streams", "groups")] == [
        "cpu",
        "fp32",
        False,
        2,
        2,
    ]
    assert json.loads((tmp_path / "out/metrics.json").read_bytes())["seconds"]["pad"] > 0
    assert "execution.groups" in vidvq("tokenize", videos, *where, "batch=2", "groups=3").error


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("device=cuda", "torch finds no CUDA device on this machine"),
        ("precision=bf16", "precision=bf16 needs a GPU"),
        ("runtime.gpus_per_worker=1.5", "must be a fraction above 0, or a whole number"),
        ("runtime.gpus_per_worker=inf", "must be a fraction above 0, or a whole number"),
    ],
)
def test_settings_for_gpus_are_refused_without_one(vidvq, videos, checkpoint_dir, tmp_path, setting, message):
    done = vidvq("tokenize", videos, "--checkpoint", checkpoint_dir, "--out", tmp_path / "out", setting)
    assert done.code == 2 and message in done.error


def test_a_slot_whose_decoder_dies_loses_one_item_and_changes_no_other_token(
    vidvq, videos, checkpoint_dir, tmp_path, monkeypatch
):
    def run(name: str) -> dict[str, np.ndarray]:
        where = ("--checkpoint", checkpoint_dir, "--out", tmp_path / name)
        assert vidvq("tokenize", videos, *where, *SETTINGS, "batch=3", INLINE).code == 0
        return samples(tmp_path / name)

    whole = run("whole")
    monkeypatch.setattr("vidvq.tokenize.decoders.decode_items", decode_or_crash)
    crashed = run("crashed")
    assert json.loads((tmp_path / "crashed/summary.json").read_bytes())["failed"]["decoder_died"]["count"] == 3
    assert list(crashed) == [key for key in whole if not key.endswith("-00002")]
    assert all(np.array_equal(codes, whole[key]) for key, codes in crashed.items())
