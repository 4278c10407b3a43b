"""Clip shards as a training dataset. Batches depend on the seed only, not on ranks, workers or restarts."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from vidvq.data.batch_order import BatchOrder, SampledItem
from vidvq.data.clip_cache import ClipCache, create_memory_file
from vidvq.data.config import BucketConfig, DataConfig, sampling_weights
from vidvq.data.index import ClipIndex, read_bytes, read_clip_index
from vidvq.data.micro_batches import UnreadableBatch
from vidvq.errors import UsageError
from vidvq.log import warn
from vidvq.video import VideoError
from vidvq.video.decode import decode_clip

# Clips to try before a micro-batch counts as unreadable.
_ATTEMPTS = 16


class ClipDataset(Dataset[torch.Tensor | UnreadableBatch]):
    """Micro-batches ``b t h w c`` uint8 of one rank, indexed by ``(batch, micro_step)``.

    Args:
        ranks: number of processes.
        cache_file: file in memory that the ranks of a machine share as cache of decoded clips; None creates one.

    Raises:
        UsageError: a directory is incomplete, no clip is usable, or the batch size is not a multiple of the processes
            times the micro-batch size.
    """

    def __init__(
        self, config: DataConfig, seed: int, rank: int = 0, ranks: int = 1, cache_file: io.FileIO | None = None
    ) -> None:
        self.config, self.seed, self.rank, self.ranks = config, seed, rank, ranks
        self.micro_batch = config.micro_batch(ranks)
        self.index = read_clip_index(list(config.clips), config.where)
        bucket = assign_buckets(self.index, config.shapes)
        if excluded := int((bucket < 0).sum()):
            shapes = ", ".join(f"{shape.width}x{shape.height}" for shape in config.shapes)
            message = f"{excluded} of {len(bucket)} clips are smaller than the crop ({shapes})"
            if excluded == len(bucket):
                raise UsageError(f"data.clips has no usable clip: {message}; lower data.crop={config.crop}")
            if rank == 0:
                warn(f"{message} and are excluded from training")
        weights = sampling_weights(config.clips)
        self.order = BatchOrder(self.index, bucket, weights, config.batch_size, config.shuffle, seed)
        self._cache = None
        if config.cache_mib:
            file = cache_file or create_memory_file("vidvq")
            self._cache = ClipCache(len(self.index.keys), config.cache_mib << 20, file)
        self._warned: set[int] = set()
        self._executors: dict[int, ThreadPoolExecutor] = {}

    def __getitem__(self, position: tuple[int, int]) -> torch.Tensor | UnreadableBatch:
        """Return a micro-batch of this rank: ``b t h w c`` uint8, or the error if no clip is readable."""
        number, micro_step = position
        bucket, samples = self.order.batch(number)
        first = (micro_step * self.ranks + self.rank) * self.micro_batch
        local = samples[first : first + self.micro_batch]
        try:
            crops = list(self._executor().map(lambda sample: self._read_crop(bucket, sample), local))
        except UsageError as error:
            return UnreadableBatch(error)
        # In a data worker, collating stacks in shared memory; another tensor would be copied there.
        return default_collate([torch.from_numpy(crop) for crop in crops])

    def _executor(self) -> ThreadPoolExecutor:
        """Return the decoding threads of this process; threads of the parent do not survive a fork."""
        process = os.getpid()
        if process not in self._executors:
            self._executors[process] = ThreadPoolExecutor(self.config.threads)
        return self._executors[process]

    def _read_crop(self, bucket: int, sample: SampledItem) -> np.ndarray:
        failure = None
        for attempt in range(_ATTEMPTS):
            clip = self.order.substitute(bucket, sample.index, attempt) if attempt else sample.index
            try:
                frames = self._decode(clip)
                rng = Random(f"{self.seed}/{sample.epoch}/{self.index.keys[clip]}")
                shape = self.config.shapes[bucket]
                return crop_clip(reduce_clip(frames, shape, self.config.scales, rng), shape, rng)
            except VideoError as error:
                failure = error
                if clip not in self._warned:
                    self._warned.add(clip)
                    warn(f"clip {self.index.keys[clip]} is replaced by another clip: {error}")
        raise UsageError(
            f"data.clips has no usable clip near {self.index.keys[sample.index]}: {_ATTEMPTS} clips failed, the last "
            f"one because of {failure}; run vidvq verify on the directory"
        )

    def _decode(self, clip: int) -> np.ndarray:
        frames = self._cache.get(clip) if self._cache else None
        if frames is None:
            frames = decode_clip(read_bytes(self.index.media_range(clip)), self.index.keys[clip])
            if self._cache:
                self._cache.put(clip, frames)
        return frames


def assign_buckets(index: ClipIndex, shapes: tuple[BucketConfig, ...]) -> np.ndarray:
    """Assign each clip to the largest bucket that it fills.

    Args:
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


def reduce_clip(frames: np.ndarray, shape: BucketConfig, scales: tuple[float, ...], rng: Random) -> np.ndarray:
    """Reduce the height and width of a clip by a random factor, bilinearly with antialiasing.

    Args:
        frames: clip ``t h w c`` uint8.
        shape: size of the crop that follows; the clip stays at least as large.
        scales: factors to draw from (above 0, up to 1).

    Returns:
        Clip ``t h w c`` uint8; ``frames`` itself if nothing is reduced.
    """
    if scales == (1.0,):
        return frames
    height, width = frames.shape[1:3]
    scale = max(rng.choice(scales), shape.height / height, shape.width / width)
    size = max(round(height * scale), shape.height), max(round(width * scale), shape.width)
    if scale >= 1:
        return frames
    # A copy, because torch warns about read-only memory such as that of cached clips.
    video = torch.tensor(frames).permute(0, 3, 1, 2)
    return F.interpolate(video, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()


def crop_clip(frames: np.ndarray, shape: BucketConfig, rng: Random) -> np.ndarray:
    """Crop a clip randomly in time and space, and flip it horizontally with probability 0.5.

    Args:
        frames: clip ``t h w c``.
        shape: size of the crop; shorter clips are extended by repeating the last frame.

    Returns:
        Crop ``t h w c``, a copy.

    Raises:
        VideoError: the frames are smaller than the crop.
    """
    if frames.shape[1] < shape.height or frames.shape[2] < shape.width:
        raise VideoError(
            "too_small", f"is {frames.shape[2]}x{frames.shape[1]} pixels; the crop is {shape.width}x{shape.height}"
        )
    first = rng.randint(0, max(frames.shape[0] - shape.num_frames, 0))
    top = rng.randint(0, frames.shape[1] - shape.height)
    left = rng.randint(0, frames.shape[2] - shape.width)
    cropped = np.array(frames[first : first + shape.num_frames, top : top + shape.height, left : left + shape.width])
    if rng.random() < 0.5:
        # Several times as fast as reversing with NumPy.
        cropped = torch.from_numpy(cropped).flip(2).numpy()
    missing = shape.num_frames - len(cropped)
    return np.concatenate([cropped, np.repeat(cropped[-1:], missing, axis=0)]) if missing else cropped
