"""Training batches: a deterministic, resumable order without repeated or dropped clips."""

import os
import re
import shutil
import signal
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vidvq.data import BucketConfig, ClipDataset, DataConfig, iter_micro_batches
from vidvq.data.batch_order import BatchOrder, _WeightedSampler
from vidvq.data.clip_cache import ClipCache, create_memory_file
from vidvq.data.dataset import UnreadableBatch, reduce_clip
from vidvq.errors import UsageError
from vidvq.runtime import RuntimeConfig
from vidvq.shard import ShardConfig, run_shard
from vidvq.shard.config import ClipPolicy
from vidvq.video.decode import decode_clip

VIDEOS = Path(__file__).parents[2] / "vidvq/demo/videos/train"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("clips")
    config = ShardConfig(
        ClipPolicy(num_frames=9, min_frames=5, short_side=32, multiple=8),
        clips_per_shard=6,
        runtime=RuntimeConfig(workers=0),
    )
    run_shard([str(VIDEOS / "carphone.mp4"), str(VIDEOS / "portrait_man.mp4")], out, config)
    return str(out)


def config(folder: str, **changes) -> DataConfig:
    return DataConfig(
        **({"clips": (folder,), "batch_size": 3, "num_frames": 5, "crop": 32, "shuffle": 8, "workers": 1} | changes)
    )


def batches(dataset: ClipDataset, count: int) -> list[torch.Tensor]:
    return list(islice(iter_micro_batches(dataset, 0), count))


def keys_of(dataset: ClipDataset, count: int) -> list[list[str]]:
    return [[dataset.index.keys[pick.index] for pick in dataset.order.batch(number)[1]] for number in range(count)]


def test_an_epoch_contains_each_clip_once(clips):
    dataset = ClipDataset(config(clips), seed=1)
    total = len(dataset.index.keys)
    keys = [key for batch in keys_of(dataset, total) for key in batch]
    assert total > 12
    for epoch in range(3):
        assert sorted(keys[epoch * total : (epoch + 1) * total]) == sorted(dataset.index.keys)
    assert keys[:total] != keys[total : 2 * total]


def test_ranks_and_micro_batches_partition_a_batch(clips):
    whole = batches(ClipDataset(config(clips, batch_size=8), 1), 3)
    ranks = [batches(ClipDataset(config(clips, batch_size=8, micro_batch_size=2), 1, rank, 2), 6) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        parts = [ranks[rank][2 * number + micro_step] for micro_step in (0, 1) for rank in (0, 1)]
        assert torch.equal(torch.cat(parts), batch)


def test_an_indivisible_batch_is_rejected(clips):
    with pytest.raises(UsageError, match=r"data\.batch_size=3 must be a multiple of 2 processes"):
        ClipDataset(config(clips), 1, 0, 2)


def test_datasets_are_mixed_by_weight(clips, tmp_path):
    other = str(shutil.copytree(clips, tmp_path / "other"))
    dataset = ClipDataset(config(clips, clips={clips: 3.0, other: 1.0}, batch_size=10), 1)
    picked = [int(dataset.index.dataset[pick.index]) for n in range(40) for pick in dataset.order.batch(n)[1]]
    assert abs(picked.count(0) - 300) <= 2
    assert all(abs(picked[:count].count(0) - 0.75 * count) <= 3 for count in range(1, 400))
    first_set = [
        pick.index for n in range(40) for pick in dataset.order.batch(n)[1] if not dataset.index.dataset[pick.index]
    ]
    size = len(dataset.index.keys) // 2
    assert len(set(first_set[:size])) == size, "each directory has its own epochs"


@pytest.mark.parametrize("weights", [[1.0], [0.0, 2.0, 0.0], [3.0, 1.0, 0.1], [0.1] * 11])
def test_earlier_choices_are_counted_without_making_them(weights):
    sampler = _WeightedSampler(np.array(weights))
    for position in (0, 1, 2, 89, 1000, 12_345):
        counts = np.bincount(sampler.choices(0, position), minlength=len(weights))
        assert [sampler.count_before(choice, position) for choice in range(len(weights))] == counts.tolist()
    far = 10**17
    counts = [sampler.count_before(choice, far) for choice in range(len(weights))]
    assert sum(counts) == far and counts == pytest.approx([far * weight / sum(weights) for weight in weights], rel=1e-9)


def test_each_epoch_of_each_directory_is_shuffled_once(monkeypatch):
    index = SimpleNamespace(shard=np.arange(400) // 10, dataset=np.arange(400) % 20)
    order = BatchOrder(index, np.zeros(400, int), [1.0] * 20, batch_size=16, window=8, seed=0)
    shuffle, shuffled = order._shuffle, []
    monkeypatch.setattr(order, "_shuffle", lambda *given: shuffled.append(given) or shuffle(*given))
    epochs = {(pick.index % 20, pick.epoch) for number in range(75) for pick in order.batch(number)[1]}
    assert len(shuffled) == len(epochs) >= 60


def test_a_weighted_directory_without_a_sample_gives_none():
    index = SimpleNamespace(shard=np.zeros(4, int), dataset=np.array([0, 0, 1, 1]))
    order = BatchOrder(index, np.zeros(4, int), [1.0, 1.0, 5.0], batch_size=4, window=8, seed=0)
    assert sorted(pick.index for pick in order.batch(0)[1]) == [0, 1, 2, 3]


def test_clips_are_assigned_to_the_largest_bucket_that_they_fill(clips, tmp_path):
    policy = ClipPolicy(num_frames=7, min_frames=7, short_side=32, multiple=8)
    run_shard([str(VIDEOS / "carphone.mp4")], tmp_path / "short", ShardConfig(policy, runtime=RuntimeConfig(workers=0)))
    shapes = (BucketConfig(9, 32, 32), BucketConfig(5, 32, 32), BucketConfig(1, 16, 16))
    dataset = ClipDataset(config(clips, clips=(clips, str(tmp_path / "short")), buckets=shapes, batch_size=2), 1)
    seen = {}
    for number in range(40):
        bucket, picks = dataset.order.batch(number)
        lengths = {int(dataset.index.num_frames[pick.index]) for pick in picks}
        assert all((length >= 9) == (bucket == 0) for length in lengths)
        seen[bucket] = dataset[number, 0].shape
    assert seen == {0: (2, 9, 32, 32, 3), 1: (2, 5, 32, 32, 3)}


def test_images_and_videos_are_mixed(clips, tmp_path):
    policy = ClipPolicy(num_frames=1, min_frames=1, stride=12, short_side=32, multiple=8)
    run_shard(
        [str(VIDEOS / "carphone.mp4")], tmp_path / "images", ShardConfig(policy, runtime=RuntimeConfig(workers=0))
    )
    shapes = (BucketConfig(5, 32, 32), BucketConfig(1, 32, 32))
    mixed = {clips: 3.0, str(tmp_path / "images"): 1.0}
    dataset = ClipDataset(config(clips, clips=mixed, buckets=shapes, batch_size=2), 1)
    frames = [dataset[number, 0].shape[1] for number in range(16)]
    assert set(frames) == {1, 5}
    assert 3 <= frames.count(1) <= 5


def test_clips_are_reduced_by_a_factor_that_depends_on_the_sample_alone(clips):
    """The same over ranks and worker counts, from frames that never become smaller than the crop."""
    settings = {"crop": 16, "batch_size": 4, "scales": (1.0, 0.5, 0.1)}
    whole = batches(ClipDataset(config(clips, **settings), 1), 3)
    workers = batches(ClipDataset(config(clips, **settings, workers=2), 1), 3)
    ranks = [batches(ClipDataset(config(clips, **settings), 1, rank, 2), 3) for rank in (0, 1)]
    for batch, same, *parts in zip(whole, workers, *ranks, strict=True):
        assert torch.equal(batch, same)
        assert torch.equal(batch, torch.cat(parts))
    assert not torch.equal(whole[0], batches(ClipDataset(config(clips, crop=16, batch_size=4), 1), 1)[0])


@pytest.mark.filterwarnings("error")
def test_a_reduced_clip_has_the_means_of_its_blocks_and_stays_as_large_as_the_crop():
    frames = np.zeros((2, 32, 48, 3), dtype=np.uint8)
    frames[:, :, 24:] = 200
    # As those of the cache are.
    frames.flags.writeable = False
    shape = BucketConfig(2, 16, 16)
    half = reduce_clip(frames, shape, (0.5,), Random(0))
    assert half.shape == (2, 16, 24, 3)
    assert (half[:, :, :11] == 0).all()
    assert (half[:, :, 13:] == 200).all()
    assert half.mean() == pytest.approx(100, abs=1)
    assert reduce_clip(frames, shape, (0.1,), Random(0)).shape == half.shape
    assert {reduce_clip(frames, shape, (1.0, 0.5), Random(seed)).shape[1] for seed in range(8)} == {16, 32}


def test_batches_are_a_function_of_the_seed(clips):
    first, again = batches(ClipDataset(config(clips), 1), 4), batches(ClipDataset(config(clips), 1), 4)
    other = batches(ClipDataset(config(clips), 2), 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert first[0].shape == (3, 5, 32, 32, 3)
    assert first[0].dtype == torch.uint8


@pytest.mark.parametrize("change", [{"cache_mib": 0}, {"threads": 3}, {"workers": 3}])
def test_batches_do_not_depend_on_how_they_are_read(clips, change):
    one, other = batches(ClipDataset(config(clips), 1), 12), batches(ClipDataset(config(clips, **change), 1), 12)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_all_workers_share_the_decoded_clips(clips, tmp_path, monkeypatch):
    log = tmp_path / "decoded"

    def decode(data, key):
        with log.open("a") as file:
            file.write(f"{key}\n")
        return decode_clip(data, key)

    monkeypatch.setattr("vidvq.data.dataset.decode_clip", decode)
    dataset = ClipDataset(config(clips, workers=3, batch_size=1), 1)
    total = len(dataset.index.keys)
    batches(dataset, 6 * total)
    # A worker may decode a clip that another one is decoding, where two epochs meet.
    assert total <= len(log.read_text().splitlines()) < 1.5 * total


def test_clips_that_do_not_fit_into_the_cache_are_decoded_again():
    cache = ClipCache(3, 1000, create_memory_file("test"))
    clips = [np.full((2, 8, 8, 3), index, np.uint8) for index in range(3)]
    for index, frames in enumerate(clips):
        cache.put(index, frames)
        cache.put(index, frames)
    assert np.array_equal(cache.get(0), clips[0]) and np.array_equal(cache.get(1), clips[1])
    assert cache.get(2) is None
    with pytest.raises(ValueError, match="read-only"):
        cache.get(0)[:] = 0


def test_a_killed_worker_does_not_block_the_cache():
    file = create_memory_file("test")
    cache, other = (ClipCache(2, 1000, file) for _ in range(2))
    clip = np.full((2, 8, 8, 3), 7, np.uint8)
    child = os.fork()
    if not child:
        with cache._locked():
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    cache.put(1, clip)
    assert np.array_equal(other.get(1), clip)


def test_a_cache_larger_than_the_memory_is_one_clear_error(clips):
    with pytest.raises(UsageError, match=r"data\.cache_mib=1000000000 must fit in the memory of this machine"):
        ClipDataset(config(clips, cache_mib=10**9), 1)


@pytest.mark.parametrize("start", [1, 4])
def test_starting_in_the_middle_continues_the_same_order(clips, start):
    dataset = ClipDataset(config(clips), 1)
    rest = list(islice(iter_micro_batches(dataset, start), 7 - start))
    assert all(torch.equal(a, b) for a, b in zip(batches(dataset, 7)[start:], rest, strict=True))


def test_starting_in_the_middle_of_a_batch_continues_with_its_next_micro_batch(clips):
    dataset = ClipDataset(config(clips, batch_size=4, micro_batch_size=1), 1)
    whole, rest = batches(dataset, 8), list(islice(iter_micro_batches(dataset, 1, 2), 2))
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], rest, strict=True))


def test_each_epoch_cuts_a_clip_elsewhere(clips):
    dataset = ClipDataset(config(clips, batch_size=1), 1)
    total = len(dataset.index.keys)
    crops = {
        (dataset.order.batch(number)[1][0].index, number // total): dataset[number, 0] for number in range(2 * total)
    }
    assert any(not torch.equal(crops[clip, 0], crops[clip, 1]) for clip in range(total))


def test_a_distant_batch_is_computed_quickly(clips):
    dataset = ClipDataset(config(clips, clips={clips: 1.0}), 1)
    assert len(dataset.order.batch(3_000_000)[1]) == 3


def test_short_clips_are_extended_by_their_last_frame(clips):
    batch = ClipDataset(config(clips, num_frames=13), 1)[0, 0]
    assert torch.equal(batch[:, 9], batch[:, 12])


def test_no_usable_clip_is_one_clear_error(clips):
    with pytest.raises(UsageError, match=r"data\.clips has no usable clip.*data\.crop=64"):
        ClipDataset(config(clips, crop=64), 1)


def test_a_damaged_clip_is_replaced_with_a_warning(clips, tmp_path, capfd):
    copy = Path(shutil.copytree(clips, tmp_path / "copy"))
    dataset = ClipDataset(config(str(copy)), 1)
    _, picks = dataset.order.batch(0)
    media = dataset.index.media_range(picks[0].index)
    data = bytearray(Path(media.shard).read_bytes())
    data[media.offset + 100] ^= 0xFF
    Path(media.shard).write_bytes(data)
    batch = dataset[0, 0]
    assert batch.shape == (3, 5, 32, 32, 3)
    assert torch.equal(batch[1:], ClipDataset(config(clips), 1)[0, 0][1:])
    assert f"{dataset.index.keys[picks[0].index]} is replaced by another clip" in capfd.readouterr().err


def test_a_batch_without_a_readable_clip_is_one_clear_error(clips, tmp_path):
    copy = Path(shutil.copytree(clips, tmp_path / "copy"))
    dataset = ClipDataset(config(str(copy)), 1)
    for shard in copy.glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    batch = dataset[0, 0]
    assert isinstance(batch, UnreadableBatch)
    assert "data.clips has no usable clip near" in str(batch.error)
    with pytest.raises(UsageError, match=re.escape(str(batch.error))):
        next(iter_micro_batches(dataset, 0))


def test_a_missing_shard_is_one_clear_error(clips, tmp_path):
    copy = Path(shutil.copytree(clips, tmp_path / "copy"))
    next(copy.glob("*.tar")).unlink()
    with pytest.raises(UsageError, match="clips-000.*is missing; run vidvq verify"):
        ClipDataset(config(str(copy)), 1)


def test_a_damaged_json_of_a_clip_is_one_clear_error(clips, tmp_path):
    shard = sorted(Path(shutil.copytree(clips, tmp_path / "copy")).glob("*.tar"))[0]
    data = shard.read_bytes()
    assert b'"clip_index":0' in data
    shard.write_bytes(data.replace(b'"clip_index":0', b'"clip_index":7', 1))
    with pytest.raises(UsageError, match=f"{shard.name} is damaged; run vidvq verify"):
        ClipDataset(config(str(tmp_path / "copy")), 1)
