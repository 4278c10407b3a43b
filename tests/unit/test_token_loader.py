"""Batches of tokens are equal on any number of ranks and workers, and after a resume."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from vidvq.data import PackedTokenLoader, TokenLoader, TokenSample, micro_batches, pack_samples, tokens
from vidvq.data.micro_batches import reporting_lost_workers
from vidvq.data.tokens import make_sample
from vidvq.errors import UsageError, WorkerLost
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import read_tokenizer_card


def first_batches(loader, count):
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def test_a_batch_holds_the_codes_of_its_keys(tokens_dir):
    loader = TokenLoader(str(tokens_dir), 2, latents=99)
    stored = {location.key: location.read(loader.card)[0] for location in index_tokens(tokens_dir)}
    seen = set()
    for batch in first_batches(loader, len(stored)):
        for key, codes in zip(batch.keys, batch.codes, strict=True):
            assert np.array_equal(codes.numpy(), stored[key])
            seen.add(key)
    assert seen == set(stored)


def test_long_samples_are_cut_after_latent_frame_0(tokens_dir):
    loader = TokenLoader(str(tokens_dir), 4, latents=2)
    stored = {location.key: location.read(loader.card)[0] for location in index_tokens(tokens_dir)}
    assert loader.dataset.shapes.tolist() == [[2, 4, 5]], "samples that are cut alike share batches"
    starts = set()
    by_key = defaultdict(set)
    for batch in first_batches(loader, 12):
        assert batch.latents[:, 0].eq(0).all() and batch.codes.shape[1] == 2
        for key, codes, ids, latents in zip(*batch, strict=True):
            assert np.array_equal(codes.numpy(), stored[key][latents.numpy()])
            offsets = [loader.card.codebook_of(t).offset for t in latents.tolist()]
            assert (ids - codes)[:, 0, 0].tolist() == offsets and offsets[1] > 0
            starts.add(int(latents[1]))
            by_key[key].add(int(latents[1]))
    assert len(starts) > 1
    assert any(len(each) > 1 for each in by_key.values()), "each epoch draws other cuts"


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_continues_exactly(tokens_dir, workers):
    whole = first_batches(TokenLoader(str(tokens_dir), 2, latents=2, seed=3), 6)
    interrupted = TokenLoader(str(tokens_dir), 2, latents=2, seed=3, workers=workers)
    first_batches(interrupted, 4)
    resumed = TokenLoader(str(tokens_dir), 2, latents=2, seed=3)
    resumed.load_state_dict(interrupted.state_dict())
    for expected, got in zip(whole[4:], first_batches(resumed, 2), strict=True):
        assert expected.keys == got.keys and torch.equal(expected.codes, got.codes)
    with pytest.raises(UsageError, match="seed=3, but this loader has seed=0"):
        TokenLoader(str(tokens_dir), 2).load_state_dict(interrupted.state_dict())


@pytest.mark.parametrize("workers", [0, 1])
def test_tokens_in_an_object_store_give_the_same_batches(tokens_dir, bucket, monkeypatch, workers):
    from s3fs import S3FileSystem

    for path in tokens_dir.rglob("*.*"):
        if path.is_file():
            bucket.upload_file(str(path), f"tokens/{path.relative_to(tokens_dir)}")
    disk, store = (TokenLoader(where, 2, workers=workers) for where in (tokens_dir, f"s3://{bucket.name}/tokens"))
    real, requests = S3FileSystem._call_s3, []

    async def call(self, method, *arguments, **options):
        requests.append(method)
        return await real(self, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", call)
    for expected, got in zip(first_batches(disk, 3), first_batches(store, 3), strict=True):
        assert expected.keys == got.keys and torch.equal(expected.codes, got.codes)
    # One for each sample, in the process that reads it.
    assert requests == ([] if workers else ["get_object"] * 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_cannot_be_read_is_its_error(tokens_dir, copy_of, workers):
    tokens = copy_of(tokens_dir)
    loader = TokenLoader(tokens, 2, workers=workers)
    for shard in tokens.glob("*.tar"):
        shard.unlink()
    with pytest.raises(FileNotFoundError) as raised:
        next(iter(loader))
    assert raised.value.filename and "Traceback" not in str(raised.value)


@pytest.mark.parametrize("batch", [-1, 10**11, 2**70, 3.5, float("inf"), "4", None])
def test_a_forged_state_is_refused(tokens_dir, batch):
    loader = TokenLoader(str(tokens_dir), 2)
    with pytest.raises(UsageError, match="the state has batch="):
        loader.load_state_dict(loader.state_dict() | {"batch": batch})
    with pytest.raises(UsageError, match="the state has batch=None; give the state_dict"):
        loader.load_state_dict({"seed": 0, "batch_size": 2})


def test_a_seed_may_be_a_digest(tokens_dir):
    (batch,) = first_batches(TokenLoader(str(tokens_dir), 2, latents=2, seed=1 << 128), 1)
    assert len(batch.keys) == 2


def test_a_far_position_of_one_directory_is_reached_at_once(tokens_dir):
    loader = TokenLoader(str(tokens_dir), 2, seed=3)
    loader.load_state_dict(loader.state_dict())
    loader.load_state_dict(loader.state_dict() | {"batch": 10**10})
    assert len(first_batches(loader, 1)[0].keys) == 2


def test_ranks_share_the_batches_of_one_process(tokens_dir):
    whole = first_batches(TokenLoader(str(tokens_dir), 4), 3)
    parts = [first_batches(TokenLoader(str(tokens_dir), 4, rank=rank, ranks=2), 3) for rank in range(2)]
    for batch, *by_rank in zip(whole, *parts, strict=True):
        assert batch.keys == [key for part in by_rank for key in part.keys]


def test_packing_keeps_ids_and_positions(tokens_dir):
    card = read_tokenizer_card(tokens_dir)
    codes = np.arange(3 * 2 * 2).reshape(3, 2, 2) % 32
    samples = [
        make_sample("a", codes, np.array([0, 2]), card),
        make_sample("b", codes[:, :1], np.array([0, 1, 2]), card),
    ]
    packed = pack_samples(samples, 16)
    assert packed.cu_seqlens.tolist() == [0, 8, 14] and packed.keep.sum() == 14
    start, stop = packed.cu_seqlens[1:]
    for index, (t, h, w) in enumerate(packed.positions[start:stop].tolist()):
        offset = card.codebook_of(t).offset
        assert packed.ids[start + index] == codes[t, h, w] + offset
    assert packed.positions[:8, 0].unique().tolist() == [0, 2]
    with pytest.raises(UsageError, match="have 14 tokens; length=13"):
        pack_samples(samples, 13)


def test_samples_of_several_batches_are_packed(tokens_dir):
    loader = TokenLoader(tokens_dir, 2, latents=2)
    batches = first_batches(loader, 2)
    samples = [sample for batch in batches for sample in batch.samples()]
    assert [sample.key for sample in samples] == [key for batch in batches for key in batch.keys]
    packed = pack_samples(samples, sum(batch.ids.numel() for batch in batches))
    assert packed.keep.all()
    assert torch.equal(packed.ids, torch.cat([batch.ids.flatten() for batch in batches]))
    assert torch.equal(packed.positions[:: 4 * 5, 0], torch.cat([batch.latents.flatten() for batch in batches]))
    tensors = [TokenSample(*each) for batch in batches for each in zip(*batch, strict=True)]
    assert same(pack_samples(tensors, len(packed.ids)), packed)


def same(found, expected):
    return found.keys == expected.keys and all(map(torch.equal, found[1:], expected[1:]))


@pytest.fixture
def grids(tokens_dir, monkeypatch):
    """Tokens of 5 x 4 positions with 1 to 3 latent frames, by key."""
    locations = index_tokens(tokens_dir)
    sizes = {location.key: 1 + number % 3 for number, location in enumerate(locations)}
    read = TokenLocation.read

    def cut(location, card):
        codes, info = read(location, card)
        return codes[: sizes[location.key]], info

    monkeypatch.setattr(TokenLocation, "read", cut)
    monkeypatch.setattr(tokens, "_read_grids", lambda all: np.array([[sizes[each.key], 4, 5] for each in all]))
    return sizes


def test_a_packed_epoch_has_each_sample_once_and_fills_sequences(tokens_dir, grids):
    loader = PackedTokenLoader(tokens_dir, 100)
    for _ in range(3):
        epoch = first_batches(loader, 5)
        assert sorted(key for packed in epoch for key in packed.keys) == sorted(grids)
        assert [int(packed.keep.sum()) for packed in epoch] == [100] * 5
        for packed in epoch:
            assert packed.ids.shape == (100,) and packed.positions.shape == (100, 3)
            assert packed.cu_seqlens.diff().tolist() == [grids[key] * 20 for key in packed.keys]
    assert loader.state_dict() == {"block": 3, "sequence": 0, "seed": 0, "length": 100}


def test_packed_sequences_hold_what_their_samples_hold(tokens_dir, grids):
    loader = PackedTokenLoader(tokens_dir, 100, latents=2, seed=4)
    stored = {location.key: location.read(loader.card)[0] for location in index_tokens(tokens_dir)}
    for packed in first_batches(loader, 12):
        for key, start, stop in zip(packed.keys, packed.cu_seqlens[:-1], packed.cu_seqlens[1:], strict=True):
            positions = packed.positions[start:stop].numpy()
            offsets = np.array([loader.card.codebook_of(t).offset for t in positions[:, 0].tolist()])
            assert np.array_equal(packed.ids[start:stop].numpy() - offsets, stored[key][tuple(positions.T)])
            assert set(positions[:, 0].tolist()) in ({0}, {0, 1}, {0, 2})


@pytest.mark.parametrize("workers", [0, 2])
def test_packed_sequences_depend_on_neither_ranks_nor_workers_nor_resume(tokens_dir, grids, workers):
    whole = first_batches(PackedTokenLoader(tokens_dir, 100, seed=3), 18)
    loaders = [PackedTokenLoader(tokens_dir, 100, seed=3, rank=rank, ranks=2, workers=workers) for rank in range(2)]
    found = zip(*(first_batches(loader, 6) for loader in loaders), strict=True)
    assert all(map(same, [packed for each in found for packed in each], whole))
    state = loaders[0].state_dict()
    assert state == loaders[1].state_dict(), "a checkpoint needs that of one rank"
    resumed = PackedTokenLoader(tokens_dir, 100, seed=3, workers=workers)
    resumed.load_state_dict(state)
    assert all(map(same, first_batches(resumed, 6), whole[12:]))
    assert not all(map(same, first_batches(PackedTokenLoader(tokens_dir, 100, seed=4), 6), whole))


def test_wrong_arguments_of_a_packed_loader_are_refused(tokens_dir, grids):
    loader = PackedTokenLoader(tokens_dir, 60)
    with pytest.raises(UsageError, match="has 60 tokens, more than length=59; set length to 60 or more, or latents lo"):
        PackedTokenLoader(tokens_dir, 59)
    with pytest.raises(UsageError, match="length=0 must be 1 or more"):
        PackedTokenLoader(tokens_dir, 0)
    with pytest.raises(UsageError, match="rank=2 must be from 0"):
        PackedTokenLoader(tokens_dir, 60, rank=2, ranks=2)
    with pytest.raises(UsageError, match="PackedTokenLoader.*latents"):
        PackedTokenLoader(tokens_dir, 60, latents=0)
    with pytest.raises(UsageError, match="the state has length=60, but this loader has length=70"):
        PackedTokenLoader(tokens_dir, 70).load_state_dict(loader.state_dict())
    with pytest.raises(UsageError, match="the state has block=-1; it must be from 0 to"):
        loader.load_state_dict(loader.state_dict() | {"block": -1})
    with pytest.raises(UsageError, match="the state has block=None; give the state_dict"):
        loader.load_state_dict(TokenLoader(tokens_dir, 2).state_dict())


def test_an_epoch_is_all_samples(tokens_dir):
    loader = TokenLoader(tokens_dir, 1)
    keys = [batch.keys[0] for batch in first_batches(loader, loader.num_samples)]
    assert sorted(keys) == sorted(location.key for location in index_tokens(tokens_dir))


def test_directories_of_one_tokenizer_are_mixed_by_weight(tokens_dir, copy_of):
    one, other = str(tokens_dir), str(copy_of(tokens_dir))
    together = TokenLoader([one, other], 4)
    assert together.num_samples == 2 * TokenLoader(one, 4).num_samples
    keys = [key for batch in first_batches(together, together.num_samples // 4) for key in batch.keys]
    assert len(set(keys)) < len(keys), "samples of both"
    loader = TokenLoader({one: 3, other: 1}, 4, latents=2)
    drawn = [
        int(loader.dataset.index.dataset[sample.index])
        for number in range(40)
        for sample in loader.dataset.order.batch(number)[1]
    ]
    assert len(drawn) == 160 and abs(drawn.count(1) - 40) <= 2


def test_tokens_of_two_tokenizers_are_refused(tokens_dir, copy_of):
    other = copy_of(tokens_dir)
    card = other / "tokenizer.json"
    card.write_text(card.read_text().replace(read_tokenizer_card(other).token_fingerprint, "f" * 64))
    with pytest.raises(UsageError, match="different tokenizers"):
        TokenLoader((str(tokens_dir), str(other)), 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": -1}, "batch_size=-1"),
        ({"latents": 0}, "latents=0"),
        ({"shuffle": 0}, "shuffle=0"),
        ({"workers": -1}, "workers=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": -1, "ranks": 2}, "rank=-1 must be from 0 to ranks - 1, with ranks=2"),
        ({"rank": 2, "ranks": 2}, "rank=2 must be from 0 to ranks - 1, with ranks=2"),
        ({"ranks": 0}, "rank=0 must be from 0 to ranks - 1, with ranks=0"),
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_named(tokens_dir, wrong, message):
    with pytest.raises(UsageError, match=message):
        TokenLoader(str(tokens_dir), **({"batch_size": 2} | wrong))


def test_a_weight_below_0_is_refused(tokens_dir):
    with pytest.raises(UsageError, match="-1"):
        TokenLoader({str(tokens_dir): -1.0}, 2)


def test_the_directory_may_be_a_path(tokens_dir):
    (of_path,), (of_text,) = (first_batches(TokenLoader(given, 2), 1) for given in (tokens_dir, str(tokens_dir)))
    assert of_path.keys == of_text.keys


@pytest.mark.parametrize(
    ("died", "how"),
    [
        ("(pid 7) is killed by signal: Killed. ", r"was killed \(Killed\)"),
        ("(pid(s) 7, 8) exited unexpectedly", "exited"),
        ("(pid 7) exited unexpectedly with exit code 1. Details are lost", "exited"),
    ],
)
def test_a_dead_worker_is_reported_with_a_remedy(tokens_dir, monkeypatch, died, how):
    # A worker that really dies makes torch raise wherever the main thread is, which may be in pytest.
    def batches(*_, **__):
        raise RuntimeError(f"DataLoader worker {died}")
        yield

    def cut_off(*_, **__):
        raise EOFError
        yield

    monkeypatch.setattr(micro_batches, "DataLoader", cut_off)
    with pytest.raises(WorkerLost, match=r"reads the data exited, .*; set data.batch_size or data.workers lower"):
        next(iter(TokenLoader(tokens_dir, batch_size=2, workers=1)))
    monkeypatch.setattr(micro_batches, "DataLoader", batches)
    with pytest.raises(WorkerLost, match=f"reads the data {how}, .*; set data.batch_size or data.workers lower"):
        next(iter(TokenLoader(tokens_dir, batch_size=2, workers=1)))
    with pytest.raises(RuntimeError, match="other"), reporting_lost_workers():
        raise RuntimeError("other")
