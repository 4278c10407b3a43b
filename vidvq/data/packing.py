"""Packing of samples of different grids into sequences of fixed length, for variable-length attention."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice, tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidvq.arguments import as_integer
from vidvq.data.batch_order import BatchOrder, SampledItem
from vidvq.data.config import sampling_weights
from vidvq.data.micro_batches import UnreadableBatch, read_ahead
from vidvq.data.tokens import (
    MAX_SAMPLES,
    TokenIndex,
    TokenSample,
    check_ranks,
    check_state,
    cut_grids,
    data_config,
    read_sample,
    read_token_index,
)
from vidvq.errors import UsageError
from vidvq.formats.token_shard import TokenizerCard

# Samples that are packed together at most. Enough that sequences are filled well.
_MAX_BLOCK = 1024


class PackedTokens(NamedTuple):
    """A packed sequence: the tokens of each sample in raster order, then padding.

    Attributes:
        keys: keys of the samples.
        ids: ids in the flat vocabulary over all codebooks, ``n`` int64; 0 for padding.
        positions: latent frame, row and column of each token, ``n 3`` int64; 0 for padding.
        cu_seqlens: cumulative sequence lengths, ``samples + 1`` int32: the start of each sample, and the end of the
            last.
        keep: mask ``n`` bool, False for padding.
    """

    keys: list[str]
    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    keep: Tensor


def pack_samples(samples: Sequence[TokenSample], length: int) -> PackedTokens:
    """Pack samples into one sequence.

    Args:
        samples: samples of any grids.
        length: length of the sequence (tokens).

    Raises:
        UsageError: an argument is of another type, or the samples have more tokens than ``length``.
    """
    length = as_integer("length", length, 0)
    given: Any = samples
    if not isinstance(given, list | tuple) or not all(isinstance(each, TokenSample) for each in given):
        raise UsageError(f"samples is a {type(given).__name__}; it must be a list of TokenSample")
    # Tensors too, as of a batch.
    flat = [np.asarray(sample.ids).ravel() for sample in samples]
    sizes = [each.size for each in flat]
    if sum(sizes) > length:
        raise UsageError(f"{len(samples)} samples have {sum(sizes)} tokens; length={length} must be at least that")
    ids, positions = torch.zeros(length, dtype=torch.int64), torch.zeros(length, 3, dtype=torch.int64)
    ends = np.cumsum([0, *sizes])
    for sample, each, start, stop in zip(samples, flat, ends, ends[1:], strict=False):
        ids[start:stop] = torch.from_numpy(each)
        axes = (sample.latents, *(np.arange(side) for side in sample.codes.shape[1:]))
        positions[start:stop] = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))
    keys = [sample.key for sample in samples]
    keep = torch.arange(length) < int(ends[-1])
    return PackedTokens(keys, ids, positions, torch.tensor(ends, dtype=torch.int32), keep)


class _Position(NamedTuple):
    """A place between two sequences.

    Attributes:
        block: index of the block of samples.
        sequence: index of the sequence in the block.
    """

    block: int
    sequence: int


class _Sequences:
    """The endless sequence of packed sequences, indexed by the samples of each. Pickled to the workers.

    Args:
        sizes: number of tokens of each sample after it is cut to ``max_latents``.
        order: order of the samples, whose batches are the blocks.
        length: length of a sequence (tokens).
        max_latents: maximum number of latent frames per sample.
    """

    def __init__(
        self, index: TokenIndex, sizes: list[int], order: BatchOrder, length: int, max_latents: int, seed: int
    ) -> None:
        self.index, self._sizes, self._order = index, sizes, order
        self._length, self._max_latents, self._seed = length, max_latents, seed

    def __getitem__(self, items: list[SampledItem]) -> PackedTokens | UnreadableBatch:
        try:
            samples = [read_sample(self.index, item, self._max_latents, self._seed) for item in items]
            return pack_samples(samples, self._length)
        except (UsageError, OSError) as error:
            return UnreadableBatch(error)

    def plan(self, position: _Position) -> Iterator[tuple[list[SampledItem], _Position]]:
        """Yield the samples of each sequence from a position on, and the position after it."""
        first = position.sequence
        for block in count(position.block):
            sequences = self._pack(block)
            for number in range(first, len(sequences)):
                last = number + 1 == len(sequences)
                yield sequences[number], _Position(block + 1, 0) if last else _Position(block, number + 1)
            first = 0

    def _pack(self, block: int) -> list[list[SampledItem]]:
        """Divide the samples of a block among sequences, by first-fit decreasing."""
        waiting = sorted(self._order.batch(block)[1], key=lambda item: self._sizes[item.index])
        sizes = [self._sizes[item.index] for item in waiting]
        sequences: list[list[SampledItem]] = [[]]
        room = self._length
        while waiting:
            largest = bisect_right(sizes, room) - 1
            if largest < 0:
                sequences.append([])
                room = self._length
            else:
                room -= sizes.pop(largest)
                sequences[-1].append(waiting.pop(largest))
        # The first sequences have the largest samples.
        shuffled = np.random.default_rng([self._seed, block]).permutation(len(sequences))
        return [sequences[number] for number in shuffled]


class PackedTokenLoader:
    """An endless iterable of packed sequences with exact resume, for samples of different grids.

    The sequences are a function of the samples and the arguments: ranks take turns, so all ranks together see the same
    sequences, whatever their number and that of the workers. Each sample occurs once per epoch. ``tokens``,
    ``latents`` and ``shuffle`` are not in the state; with others, the sequences from that position on differ.

    Args:
        tokens: directories of token shards of one tokenizer: one, several, or a mapping of each to its sampling weight.
        length: length of a sequence (tokens); at least the tokens of the largest sample.
        latents: maximum number of latent frames per sample; see :class:`TokenDataConfig`.
        seed: seed of the order and of the cuts of long samples (0 or more).
        rank: index of this process, from 0.
        ranks: number of processes.
        workers: number of reading processes; 0 reads in this process.
        shuffle: size of the shuffle window (samples).

    Raises:
        UsageError: a directory is incomplete or damaged, an argument is of another type or out of range, or a sample
            has more than ``length`` tokens.
    """

    def __init__(
        self,
        tokens: str | Path | Sequence[str | Path] | Mapping[str | Path, float],
        length: int,
        latents: int = 5,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        shuffle: int = 10_000,
    ) -> None:
        self._seed, self._rank, self._ranks = check_ranks(seed, rank, ranks)
        self._length = as_integer("length", length, 1)
        config = data_config("PackedTokenLoader", tokens, 1, latents, shuffle, workers)
        self._workers = config.workers
        index = read_token_index(list(config.tokens))
        sizes = cut_grids(index, config.latents).prod(axis=1)
        if (most := int(sizes.max())) > self._length:
            key = index.locations[int(sizes.argmax())].key
            raise UsageError(
                f"sample {key} has {most} tokens, more than length={self._length}; set length to {most} or more, or "
                "latents lower"
            )
        weights = sampling_weights(config.tokens)
        # A block of several epochs would mix them.
        block = min(_MAX_BLOCK, len(sizes))
        order = BatchOrder(index, np.zeros(len(sizes), int), weights, block, config.shuffle, self._seed)
        self._sequences = _Sequences(index, sizes.tolist(), order, self._length, config.latents, self._seed)
        self._position = _Position(0, 0)

    @property
    def card(self) -> TokenizerCard:
        """Card of the tokenizer."""
        return self._sequences.index.card

    @property
    def num_samples(self) -> int:
        """Number of samples in an epoch."""
        return len(self._sequences.index.locations)

    def __iter__(self) -> Iterator[PackedTokens]:
        """Yield sequences of this rank, endlessly, from the current position."""
        # The workers read ahead.
        planned, yielded = tee(self._plan())
        reading = read_ahead(self._sequences, (items for items, _ in planned), self._workers, self._seed)
        for packed, (_, end) in zip(reading, yielded, strict=True):
            self._position = end
            yield packed

    def _plan(self) -> Iterator[tuple[list[SampledItem], _Position]]:
        """Yield the samples of this rank's sequence, and the position after that of the last rank."""
        planned = self._sequences.plan(self._position)
        while True:
            by_rank = list(islice(planned, self._ranks))
            yield by_rank[self._rank][0], by_rank[-1][1]

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last yielded sequence; that of every rank is the same."""
        return self._position._asdict() | {"seed": self._seed, "length": self._length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the position; takes effect for the next iterator.

        Raises:
            UsageError: the state is not that of a loader, or belongs to another seed or length.
        """
        check_state(state, self.state_dict(), {"block": MAX_SAMPLES // _MAX_BLOCK, "sequence": _MAX_BLOCK})
        self._position = _Position(int(state["block"]), int(state["sequence"]))
