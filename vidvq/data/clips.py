"""Endless, shuffled, resumable batches of crops from clip shards.

The order of samples is a function of the seed alone: shards are shuffled per epoch, clips through a buffer. Sample
``i`` of that one order goes to reader ``i mod (ranks x workers)``, so nothing is seen twice in an epoch and nothing
is dropped, however many readers there are.
"""

import os
import signal
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random
from threading import Thread
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.handlers import reraise_exception
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList
from webdataset.tariterators import tarfile_to_samples

from vidvq.formats.clip_shard import MEDIA, clip_media
from vidvq.formats.commit import read_commit
from vidvq.formats.plan import read_plan
from vidvq.log import warn
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class DataConfig:
    """What a training run reads.

    Attributes:
        clips: directories that ``vidvq shard`` finished; one may be given without a list.
        batch_size: clips per step and process.
        num_frames: frames per clip, from a random start; a clip that has fewer is extended by its last frame.
        crop: height and width of the random crop, pixels; a clip that is smaller is left out, with a warning.
        shuffle: clips in the shuffle buffer.
        workers: processes that decode, per training process.
        cache_mib: decoded clips that each of them keeps, MiB; small data sets are then decoded once.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    clips: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]
    batch_size: Annotated[int, Field(ge=1)] = 8
    num_frames: Annotated[int, Field(ge=1)] = 17
    crop: Annotated[int, Field(ge=8)] = 128
    shuffle: Annotated[int, Field(ge=1)] = 1000
    workers: Annotated[int, Field(ge=1)] = 2
    cache_mib: Annotated[int, Field(ge=0)] = 256


def list_shards(config: DataConfig) -> list[str]:
    """The clip shards of a config.

    Raises:
        ValueError: a directory is unfinished, or there is not one clip.
    """
    shards: list[str] = []
    for folder in map(Path, config.clips):
        for shard, _ in read_plan(folder).shards():
            commit = read_commit(folder, shard)
            if commit is None:
                raise ValueError(f"{folder}: {shard} is not committed; finish vidvq shard first")
            if commit.sha256:
                # Absolute, so that webdataset never takes a name for a URL or a command.
                shards.append((folder / shard).absolute().as_posix())
    if not shards:
        raise ValueError(f"data.clips={','.join(config.clips)} holds no clips; give directories that vidvq shard wrote")
    return shards


class ClipBatches(IterableDataset[torch.Tensor | str]):
    """Yields ``b t h w c`` uint8 batches for one rank, without end; or, at last, a message of what is wrong.

    Args:
        config: what to read.
        seed: of the order and the crops.
        rank, ranks: this process, of how many.
        start: the step to start at; the batches of the steps before it are passed over.
    """

    def __init__(self, config: DataConfig, seed: int, rank: int = 0, ranks: int = 1, start: int = 0) -> None:
        self.config, self.seed, self.rank, self.ranks, self.start = config, seed, rank, ranks, start
        self.shards = list_shards(config)
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._cached_bytes = 0

    def __iter__(self) -> Iterator[torch.Tensor | str]:
        """Yield this worker's batches; the loader takes turns among workers, so worker ``w`` makes every w-th step."""
        torch.set_num_threads(1)
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        turn = ((worker.id if worker else 0) + self.start) % workers
        readers = self.ranks * workers
        passed = (self.start - turn + workers - 1) // workers * self.config.batch_size
        mine = islice(self._order(), self.rank * workers + turn, None, readers)
        crops = self._crops(islice(mine, passed, None))
        try:
            while True:
                yield torch.from_numpy(np.stack(list(islice(crops, self.config.batch_size))))
        except ValueError as error:
            # An exception out of a worker process would arrive as a traceback.
            yield str(error)

    def _order(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for epoch in count():
            shards = list(self.shards)
            random = Random(f"{self.seed}/{epoch}")
            random.shuffle(shards)
            pipeline = DataPipeline(
                SimpleShardList(shards),
                tarfile_to_samples(handler=reraise_exception),
                shuffle(self.config.shuffle, initial=self.config.shuffle, rng=random),
            )
            for sample in pipeline:
                yield epoch, sample

    def _crops(self, samples: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[np.ndarray]:
        unusable: set[str] = set()
        useful = False
        for epoch, sample in samples:
            key = sample["__key__"]
            try:
                frames = self._decode(key, sample)
                crop = self._crop(frames, Random(f"{self.seed}/{epoch}/{key}"))
            except VideoError as error:
                if key in unusable:
                    if not useful:
                        raise ValueError(f"data.clips has no usable clip; the last one, {key}, {error}") from error
                    continue
                unusable.add(key)
                warn(f"clip {key} is left out of training: {error}")
                continue
            useful = True
            yield crop

    def _decode(self, key: str, sample: dict[str, Any]) -> np.ndarray:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        frames = decode_clip(clip_media({name: sample[name] for name in (*MEDIA, "json") if name in sample}, key), key)
        self._cache[key] = frames
        self._cached_bytes += frames.nbytes
        while self._cached_bytes > self.config.cache_mib << 20:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes
        return frames

    def _crop(self, frames: np.ndarray, random: Random) -> np.ndarray:
        length, side = self.config.num_frames, self.config.crop
        if min(frames.shape[1:3]) < side:
            raise VideoError("too_small", f"is {frames.shape[2]}x{frames.shape[1]} pixels; data.crop={side}")
        first = random.randint(0, max(frames.shape[0] - length, 0))
        top = random.randint(0, frames.shape[1] - side)
        left = random.randint(0, frames.shape[2] - side)
        cropped = frames[first : first + length, top : top + side, left : left + side]
        if random.random() < 0.5:
            cropped = cropped[:, :, ::-1]
        missing = length - len(cropped)
        return np.concatenate([cropped, np.repeat(cropped[-1:], missing, axis=0)]) if missing else cropped


def clip_batches(config: DataConfig, seed: int, rank: int, ranks: int, start: int) -> Iterator[torch.Tensor]:
    """Batches ``b t h w c`` uint8 from step ``start`` on, decoded ahead in ``config.workers`` processes."""
    dataset = ClipBatches(config, seed, rank, ranks, start)
    # A generator of its own: the loader would draw its seed from the run's random state, once more after each resume.
    own = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=config.workers,
        worker_init_fn=_start_worker,
        prefetch_factor=2,
        generator=own,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise ValueError(batch)
        yield batch


def _start_worker(worker: int) -> None:
    # Schedulers and torchrun send SIGTERM to the whole group, and the run still needs its data to end the step and
    # save. From the run itself it means the end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_end_when_the_run_says, daemon=True).start()


def _end_when_the_run_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
