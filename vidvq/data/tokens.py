"""Token shards as a training dataset. Batches depend on the seed only, not on ranks, workers or restarts."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidvq import config as settings
from vidvq.arguments import as_integer
from vidvq.data.batch_order import BatchOrder, SampledItem
from vidvq.data.config import TokenDataConfig, sampling_weights
from vidvq.data.micro_batches import UnreadableBatch, iter_micro_batches
from vidvq.errors import UsageError
from vidvq.formats.export_records import is_export
from vidvq.formats.token_index import index_tokens
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import TokenizerCard, read_tokenizer_card
from vidvq.storage import resolve_path

# Far more than any training needs; positions must fit 64 bits.
MAX_SAMPLES = 10**11
_READERS = 16
_SAMPLES_PER_READ = 1024


@dataclass(frozen=True)
class TokenIndex:
    """The samples of one or more directories, in the order of their shards. Columns have one entry per sample.

    Attributes:
        card: card of the tokenizer.
        locations: location of each sample in its shard.
        shard: index of the shard.
        dataset: index of the directory.
        grid: shape ``lt lh lw`` of each sample, ``n 3``.
    """

    card: TokenizerCard
    locations: list[TokenLocation]
    shard: np.ndarray
    dataset: np.ndarray
    grid: np.ndarray


class TokenSample(NamedTuple):
    """A sample, possibly cut in time.

    Attributes:
        key: key of the sample.
        codes: indices into the codebooks, ``lt lh lw`` int64.
        ids: the same codes as ids in the flat vocabulary over all codebooks, ``lt lh lw`` int64.
        latents: index of each latent frame in the complete sample, ``lt`` int64; the first is 0.
    """

    key: str
    codes: np.ndarray
    ids: np.ndarray
    latents: np.ndarray


class TokenBatch(NamedTuple):
    """A batch of samples with one grid.

    Attributes:
        keys: keys of the samples.
        codes: indices into the codebooks, ``b lt lh lw`` int64: the card's first codebook for latent frame 0, its last
            one for later latent frames.
        ids: the same codes as ids in the flat vocabulary over all codebooks, ``b lt lh lw`` int64.
        latents: index of each latent frame in the complete sample, ``b lt`` int64; the first is 0.
    """

    keys: list[str]
    codes: Tensor
    ids: Tensor
    latents: Tensor

    def samples(self) -> list[TokenSample]:
        """Return the samples of the batch."""
        each = zip(self.keys, self.codes.numpy(), self.ids.numpy(), self.latents.numpy(), strict=True)
        return [TokenSample(*sample) for sample in each]


def read_token_index(folders: list[str]) -> TokenIndex:
    """Index directories of token shards, or ``megatron`` exports of them; reads the JSON of each sample.

    Raises:
        UsageError: a directory is incomplete or damaged, there are no samples, or tokenizers differ.
    """
    card: TokenizerCard | None = None
    locations: list[TokenLocation] = []
    dataset: list[int] = []
    for number, given in enumerate(folders):
        folder = resolve_path(given)
        # Before the card, because an export without grids has none.
        exported = index_tokens(folder) if is_export(folder) else None
        own = read_tokenizer_card(folder)
        if card and own.token_fingerprint != card.token_fingerprint:
            raise UsageError(
                f"{folders[0]} and {given} were made by different tokenizers ({card.token_fingerprint[:12]}, "
                f"{own.token_fingerprint[:12]}); train on tokens of a single tokenizer"
            )
        card = card or own
        samples = index_tokens(folder) if exported is None else exported
        locations += samples
        dataset += [number] * len(samples)
    if not locations or card is None:
        raise UsageError(f"{', '.join(folders)} has no token samples")
    names: dict[Path, int] = {}
    shard = [names.setdefault(location.shard, len(names)) for location in locations]
    return TokenIndex(card, locations, np.array(shard), np.array(dataset), _read_grids(locations))


def _read_grids(locations: list[TokenLocation]) -> np.ndarray:
    """Shape of each sample, ``n 3``. An object store takes a request for each."""
    starts = range(0, len(locations), _SAMPLES_PER_READ)

    def read(start: int) -> np.ndarray:
        return np.array([location.read_info().grid for location in locations[start : start + _SAMPLES_PER_READ]])

    with ThreadPoolExecutor(_READERS) as readers:
        return np.concatenate(list(readers.map(read, starts)))


def cut_grids(index: TokenIndex, max_latents: int) -> np.ndarray:
    """Return the shape of each sample after long ones are cut, ``n 3``."""
    return np.column_stack([np.minimum(index.grid[:, 0], max_latents), index.grid[:, 1:]])


class TokenDataset(Dataset[TokenBatch | UnreadableBatch]):
    """Micro-batches of one rank, indexed by ``(batch, micro_step)``.

    Args:
        seed: seed of the order and of the cuts of long samples.
        ranks: number of processes.

    Raises:
        UsageError: a directory is incomplete or damaged, or the batch size is not a multiple of the processes times the
            micro-batch size.
    """

    def __init__(self, config: TokenDataConfig, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.config, self.seed, self.rank, self.ranks = config, seed, rank, ranks
        self.micro_batch = config.micro_batch(ranks)
        self.index = read_token_index(list(config.tokens))
        self.card = self.index.card
        self.shapes, bucket = np.unique(cut_grids(self.index, config.latents), axis=0, return_inverse=True)
        weights = sampling_weights(config.tokens)
        self.order = BatchOrder(self.index, bucket.ravel(), weights, config.batch_size, config.shuffle, seed)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.index.locations)

    def __getitem__(self, position: tuple[int, int]) -> TokenBatch | UnreadableBatch:
        """Return a micro-batch of this rank."""
        try:
            return collate(self.samples(*position))
        except (UsageError, OSError) as error:
            return UnreadableBatch(error)

    def samples(self, number: int, micro_step: int = 0, from_start: bool = False) -> list[TokenSample]:
        """Return the samples of a micro-batch of this rank.

        Args:
            from_start: whether to cut long samples to their first latent frames instead of a random run.

        Raises:
            UsageError: a shard is damaged.
        """
        first = self.first_sample(micro_step)
        local = self.order.batch(number)[1][first : first + self.micro_batch]
        return [read_sample(self.index, item, self.config.latents, self.seed, from_start) for item in local]

    def first_sample(self, micro_step: int) -> int:
        """Return the index in the batch of the first sample of a micro-batch of this rank."""
        return (micro_step * self.ranks + self.rank) * self.micro_batch


def read_sample(
    index: TokenIndex, item: SampledItem, max_latents: int, seed: int, from_start: bool = False
) -> TokenSample:
    """Read a sample, and cut a long one to latent frame 0 and a run of later ones.

    Args:
        seed: seed of the cut, which also depends on the epoch.
        from_start: whether to cut to the first latent frames instead of a random run.

    Raises:
        UsageError: the shard is damaged.
    """
    location = index.locations[item.index]
    codes, _ = location.read(index.card)
    latents = np.arange(len(codes))
    if len(codes) > max_latents:
        length = max_latents - 1
        rng = Random(f"{seed}/{item.epoch}/{location.key}")
        start = 1 if from_start else rng.randint(1, len(codes) - length)
        latents = np.concatenate([latents[:1], latents[start : start + length]])
    return make_sample(location.key, codes, latents, index.card)


def make_sample(key: str, codes: np.ndarray, latents: np.ndarray, card: TokenizerCard) -> TokenSample:
    """Select latent frames (indices ``n``) from the codes ``lt lh lw`` of a sample."""
    selected = codes[latents].astype(np.int64)
    return TokenSample(key, selected, selected + card.offsets(latents), latents.astype(np.int64))


def collate(samples: list[TokenSample]) -> TokenBatch:
    """Stack samples of one grid."""
    keys, *arrays = zip(*samples, strict=True)
    codes, ids, latents = (torch.from_numpy(np.stack(each)) for each in arrays)
    return TokenBatch(list(keys), codes, ids, latents)


def _names(tokens: Any) -> Any:
    """Return paths as texts, which settings consist of."""
    if isinstance(tokens, Mapping):
        return {_names(name): weight for name, weight in cast("Mapping[Any, Any]", tokens).items()}
    if isinstance(tokens, list | tuple):
        return [_names(name) for name in cast("Sequence[Any]", tokens)]
    return str(tokens) if isinstance(tokens, Path) else tokens


def check_ranks(seed: Any, rank: Any, ranks: Any) -> tuple[int, int, int]:
    """Return the seed, the rank and the number of ranks of a loader as integers.

    Raises:
        UsageError: one is not an integer or out of range.
    """
    seed, rank, ranks = as_integer("seed", seed, 0), as_integer("rank", rank), as_integer("ranks", ranks)
    if not 0 <= rank < ranks:
        raise UsageError(f"rank={rank} must be from 0 to ranks - 1, with ranks={ranks}")
    return seed, rank, ranks


def data_config(loader: str, tokens: Any, batch_size: Any, latents: Any, shuffle: Any, workers: Any) -> TokenDataConfig:
    """Return the arguments of a loader as settings.

    Args:
        loader: name of the class, for messages.

    Raises:
        UsageError: an argument is of another type or out of range.
    """
    data = {"batch_size": batch_size, "latents": latents, "shuffle": shuffle, "workers": workers}
    return settings.validate(TokenDataConfig, {"tokens": _names(tokens)} | data, loader)


class TokenLoader:
    """An endless iterable of token batches with exact resume, for any training loop.

    A batch is a function of the samples, the arguments and its number, so the state is a single number, valid for any
    number of ranks and workers: all ranks together see the same batches. ``tokens``, ``latents`` and ``shuffle`` are
    not in the state; with others, the batches from that position on differ.

    Args:
        tokens: directories of token shards of one tokenizer: one, several, or a mapping of each to its sampling weight.
        batch_size: samples per batch over all ranks; each rank gets ``batch_size / ranks``.
        latents: maximum number of latent frames per sample; see :class:`TokenDataConfig`.
        seed: seed of the order and of the cuts of long samples (0 or more).
        rank: index of this process, from 0.
        ranks: number of processes.
        workers: number of reading processes; 0 reads in this process.
        shuffle: size of the shuffle window (samples).

    Raises:
        UsageError: a directory is incomplete or damaged, an argument is of another type or out of range, or
            ``batch_size`` is not divisible by ``ranks``.
    """

    def __init__(
        self,
        tokens: str | Path | Sequence[str | Path] | Mapping[str | Path, float],
        batch_size: int,
        latents: int = 5,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        shuffle: int = 10_000,
    ) -> None:
        seed, rank, ranks = check_ranks(seed, rank, ranks)
        config = data_config("TokenLoader", tokens, batch_size, latents, shuffle, workers)
        if config.batch_size % ranks:
            raise UsageError(f"batch_size={config.batch_size} must be a multiple of ranks={ranks}")
        self.dataset = TokenDataset(config, seed, rank, ranks)
        self._batch = 0

    @property
    def card(self) -> TokenizerCard:
        """Card of the tokenizer."""
        return self.dataset.card

    @property
    def num_samples(self) -> int:
        """Number of samples; ``num_samples / batch_size`` batches are an epoch."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[TokenBatch]:
        """Yield batches of this rank, endlessly, from the current position."""
        for batch in iter_micro_batches(self.dataset, self._batch):
            self._batch += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last yielded batch."""
        return {"batch": self._batch, "seed": self.dataset.seed, "batch_size": self.dataset.config.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the position; takes effect for the next iterator.

        Raises:
            UsageError: the state is not that of a loader, or belongs to another seed or batch size.
        """
        check_state(state, self.state_dict(), {"batch": MAX_SAMPLES // self.dataset.config.batch_size})
        self._batch = int(state["batch"])


def check_state(state: Any, current: dict[str, Any], bounds: dict[str, int]) -> None:
    """Refuse the state of another loader.

    Args:
        current: state of this loader.
        bounds: greatest value of each entry that is a position; the other entries must be those of this loader.

    Raises:
        UsageError: the state is not that of a loader, or belongs to a loader with other arguments.
    """
    for name in current:
        value = state.get(name) if settings.is_mapping(state) else None
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise UsageError(f"the state has {name}={value!r}; give the state_dict() of a loader")
    for name, value in current.items():
        if name not in bounds and state[name] != value:
            raise UsageError(f"the state has {name}={state[name]}, but this loader has {name}={value}")
    for name, most in bounds.items():
        if not 0 <= state[name] <= most:
            raise UsageError(f"the state has {name}={state[name]}; it must be from 0 to {most}")
