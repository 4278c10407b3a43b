"""Clip shards as a training dataset. Batches depend on the seed only, not on ranks, workers or restarts."""

import gc
import os
import signal
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from threading import Lock, Thread

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vidvq.data.batch_order import BatchOrder, SampledClip
from vidvq.data.config import BucketConfig, DataConfig
from vidvq.data.index import ClipIndex, read_bytes, read_clip_index
from vidvq.errors import UsageError
from vidvq.log import warn
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip

_ATTEMPTS = 16


@dataclass(frozen=True)
class UnreadableBatch:
    """A micro-batch without a decodable clip. A value, because exceptions from data workers print a traceback.

    Attributes:
        reason: cause, for the user.
    """

    reason: str


class ClipDataset(Dataset[torch.Tensor | UnreadableBatch]):
    """Micro-batches ``b t h w c`` uint8 of one rank, indexed by ``(batch, micro_step)``.

    Args:
        config: clips, batch size and batch shapes.
        seed: seed of the order and the crops.
        rank: rank of this process.
        ranks: number of processes.

    Raises:
        UsageError: a directory is incomplete, no clip is usable, or the batch size is not divisible by the number of
            processes.
    """

    def __init__(self, config: DataConfig, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.config, self.seed, self.rank, self.ranks = config, seed, rank, ranks
        self.micro_batch = config.micro_batch(ranks)
        self.index = read_clip_index(list(config.clips), config.where)
        bucket = assign_buckets(self.index, config.shapes)
        if left_out := int((bucket < 0).sum()):
            shapes = ", ".join(f"{shape.width}x{shape.height}" for shape in config.shapes)
            message = f"{left_out} of {len(bucket)} clips are smaller than the crop ({shapes})"
            if left_out == len(bucket):
                raise UsageError(f"data.clips has no usable clip: {message}; lower data.crop={config.crop}")
            if rank == 0:
                warn(f"{message} and are excluded from training")
        weights = list(config.clips.values()) if isinstance(config.clips, dict) else None
        self.order = BatchOrder(self.index, bucket, weights, config.batch_size, config.shuffle, seed)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._lock = Lock()
        self._warned: set[int] = set()
        self._executors: dict[int, ThreadPoolExecutor] = {}

    def __getitem__(self, position: tuple[int, int]) -> torch.Tensor | UnreadableBatch:
        """Return a micro-batch of this rank."""
        number, micro_step = position
        bucket, samples = self.order.batch(number)
        first = (micro_step * self.ranks + self.rank) * self.micro_batch
        local = samples[first : first + self.micro_batch]
        try:
            crops = list(self._executor().map(lambda sample: self._crop_of(bucket, sample), local))
        except UsageError as error:
            return UnreadableBatch(str(error))
        return torch.from_numpy(np.stack(crops))

    def _executor(self) -> ThreadPoolExecutor:
        """Return the decoding threads of this process; threads of the parent do not survive a fork."""
        process = os.getpid()
        if process not in self._executors:
            self._executors[process] = ThreadPoolExecutor(self.config.threads)
        return self._executors[process]

    def _crop_of(self, bucket: int, sample: SampledClip) -> np.ndarray:
        last = None
        for attempt in range(_ATTEMPTS):
            clip = self.order.substitute(bucket, sample.clip, attempt) if attempt else sample.clip
            try:
                frames = self._decode(clip)
                random = Random(f"{self.seed}/{sample.epoch}/{self.index.keys[clip]}")
                return crop_clip(frames, self.config.shapes[bucket], random)
            except VideoError as error:
                last = error
                if clip not in self._warned:
                    self._warned.add(clip)
                    warn(f"clip {self.index.keys[clip]} is replaced by another clip: {error}")
        raise UsageError(
            f"data.clips has no usable clip near {self.index.keys[sample.clip]}; the last one tried {last}"
        )

    def _decode(self, clip: int) -> np.ndarray:
        with self._lock:
            if clip in self._cache:
                self._cache.move_to_end(clip)
                return self._cache[clip]
        frames = decode_clip(read_bytes(self.index.media_range(clip)), self.index.keys[clip])
        with self._lock:
            if clip not in self._cache:
                self._cache[clip] = frames
                self._cached_bytes += frames.nbytes
            while self._cached_bytes > self.config.cache_mib << 20:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.nbytes
        return frames


def assign_buckets(index: ClipIndex, shapes: tuple[BucketConfig, ...]) -> np.ndarray:
    """Assign each clip to the largest bucket that it fills.

    Args:
        index: the clips.
        shapes: shape of each bucket.

    Returns:
        Index of the bucket of each clip. Clips shorter than all buckets are assigned to the shortest bucket whose crop
        they fill; -1 marks clips smaller than all crops.
    """
    by_size = sorted(range(len(shapes)), key=lambda i: shapes[i].num_frames * shapes[i].height * shapes[i].width)
    bucket = np.full(len(index.keys), -1)
    fits = {i: (index.height >= shapes[i].height) & (index.width >= shapes[i].width) for i in by_size}
    for i in sorted(by_size, key=lambda i: -shapes[i].num_frames):
        bucket[fits[i]] = i
    for i in by_size:
        bucket[fits[i] & (index.num_frames >= shapes[i].num_frames)] = i
    return bucket


def crop_clip(frames: np.ndarray, shape: BucketConfig, random: Random) -> np.ndarray:
    """Crop a clip randomly in time and space, and flip it horizontally with probability 0.5.

    Args:
        frames: clip ``t h w c``.
        shape: size of the crop; shorter clips are extended by repeating the last frame.
        random: source of randomness.

    Returns:
        Crop ``t h w c``.

    Raises:
        VideoError: the frames are smaller than the crop.
    """
    if frames.shape[1] < shape.height or frames.shape[2] < shape.width:
        raise VideoError(
            "too_small", f"is {frames.shape[2]}x{frames.shape[1]} pixels; the crop is {shape.width}x{shape.height}"
        )
    first = random.randint(0, max(frames.shape[0] - shape.num_frames, 0))
    top = random.randint(0, frames.shape[1] - shape.height)
    left = random.randint(0, frames.shape[2] - shape.width)
    cropped = frames[first : first + shape.num_frames, top : top + shape.height, left : left + shape.width]
    if random.random() < 0.5:
        cropped = cropped[:, :, ::-1]
    missing = shape.num_frames - len(cropped)
    return np.concatenate([cropped, np.repeat(cropped[-1:], missing, axis=0)]) if missing else cropped


class _MicroBatchSampler:
    """An endless sequence of positions ``(batch, micro_step)``, starting from a given one."""

    def __init__(self, number: int, micro_step: int, micro_steps: int) -> None:
        self._number, self._micro_step, self._micro_steps = number, micro_step, micro_steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        number, micro_step = self._number, self._micro_step
        while True:
            yield number, micro_step
            micro_step += 1
            if micro_step == self._micro_steps:
                number, micro_step = number + 1, 0


def iter_micro_batches(dataset: ClipDataset, number: int, micro_step: int = 0) -> Iterator[torch.Tensor]:
    """Iterate over micro-batches, decoded ahead in worker processes.

    Args:
        dataset: micro-batches of this rank.
        number: number of the first batch.
        micro_step: index of the first micro-batch in that batch.

    Yields:
        Micro-batches ``b t h w c`` uint8, without end.

    Raises:
        UsageError: no clip of a micro-batch can be decoded.
    """
    config = dataset.config
    # Without a generator, the loader would draw its seed from the global random state, which resuming would change.
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=_MicroBatchSampler(number, micro_step, config.accumulation(dataset.ranks)),
        num_workers=config.workers,
        worker_init_fn=_start_worker,
        prefetch_factor=2,
        generator=torch.Generator().manual_seed(dataset.seed),
    )
    # Frames own threads of libswscale. A frame collected after the fork would wait in the worker for threads that exist
    # only in the parent.
    gc.collect()
    for batch in loader:
        if isinstance(batch, UnreadableBatch):
            raise UsageError(batch.reason)
        yield batch


def _start_worker(worker: int) -> None:
    gc.freeze()
    torch.set_num_threads(1)
    # Schedulers and torchrun send SIGTERM to the whole process group, but the run needs data to finish its step and
    # save. Workers exit only on a SIGTERM from their parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
