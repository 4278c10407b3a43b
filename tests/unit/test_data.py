"""Training batches: one order, nothing twice, nothing dropped, resumable."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from vidvq.data import ClipBatches, DataConfig, clip_batches
from vidvq.runtime import RuntimeConfig
from vidvq.shard import ShardConfig, run_shard
from vidvq.shard.config import ClipPolicy

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


def config(clips: str, **changes) -> DataConfig:
    return DataConfig(
        (clips,), **({"batch_size": 3, "num_frames": 5, "crop": 32, "shuffle": 8, "workers": 1} | changes)
    )


def take(dataset, count: int) -> list[torch.Tensor]:
    return list(islice(iter(dataset), count))


def keys_of_an_epoch(clips: str, rank: int, ranks: int) -> list[str]:
    dataset = ClipBatches(config(clips), seed=1, rank=rank, ranks=ranks)
    samples = islice(dataset._order(), rank, None, ranks)
    keys = []
    for epoch, sample in samples:
        if epoch:
            return keys
        keys.append(sample["__key__"])
    return keys


def test_ranks_share_an_epoch_without_loss_or_repeat(clips):
    alone = keys_of_an_epoch(clips, 0, 1)
    assert len(set(alone)) == len(alone) > 12
    shared = [key for rank in range(3) for key in keys_of_an_epoch(clips, rank, 3)]
    assert sorted(shared) == sorted(alone)


def test_batches_are_a_function_of_the_seed(clips):
    first, again = take(ClipBatches(config(clips), seed=1), 4), take(ClipBatches(config(clips), seed=1), 4)
    other = take(ClipBatches(config(clips), seed=2), 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert first[0].shape == (3, 5, 32, 32, 3)
    assert first[0].dtype == torch.uint8


def test_the_cache_changes_nothing(clips):
    cached, bare = take(ClipBatches(config(clips), 1), 12), take(ClipBatches(config(clips, cache_mib=0), 1), 12)
    assert all(torch.equal(a, b) for a, b in zip(cached, bare, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("start", [1, 4])
def test_a_start_in_the_middle_goes_on_where_it_was(clips, workers, start):
    whole = list(islice(clip_batches(config(clips, workers=workers), 1, 0, 1, start=0), 7))
    rest = list(islice(clip_batches(config(clips, workers=workers), 1, 0, 1, start=start), 7 - start))
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_short_clips_are_extended_by_their_last_frame(clips):
    batch = take(ClipBatches(config(clips, num_frames=13), seed=1), 1)[0]
    assert torch.equal(batch[:, 9], batch[:, 12])


def test_no_usable_clip_is_one_clear_error(clips):
    with pytest.raises(ValueError, match=r"data\.clips has no usable clip.*data\.crop=64"):
        next(iter(clip_batches(config(clips, crop=64), 1, 0, 1, start=0)))
