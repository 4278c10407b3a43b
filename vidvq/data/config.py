"""Settings of the training data."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from vidvq.errors import UsageError

Size = Annotated[int, Field(ge=1)]


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class BucketConfig:
    """One shape of batch: frames per clip, height and width of the crop (pixels). One frame gives batches of images."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    num_frames: Size
    height: Size
    width: Size


@dataclass(frozen=True)
class DataConfig:
    """The clips of a training run, and how they are batched.

    Attributes:
        clips: directories or URLs written by ``vidvq shard``: one, a list, or a mapping of each to its sampling weight.
            Without weights all clips are equally likely.
        batch_size: clips per step, over all processes and micro-batches; independent of the number of processes.
        micro_batch_size: clips per micro-batch of one process; None takes the process's whole share at once.
        num_frames: frames per clip, from a random start; shorter clips are extended by repeating the last frame.
        crop: height and width of the random crop (pixels); smaller clips are left out, with a warning.
        buckets: shapes of batches, in place of ``num_frames`` and ``crop``. A clip belongs to the largest that it
            fills.
        shuffle: size of the shuffle window (clips), after shards are shuffled.
        workers: decoding processes per training process.
        threads: decoding threads per worker.
        cache_mib: cache of decoded clips per worker (MiB); small data sets are then decoded once.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    clips: Annotated[
        dict[str, Annotated[float, Field(gt=0)]] | tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1)
    ]
    batch_size: Size = 8
    micro_batch_size: Size | None = None
    num_frames: Size = 17
    crop: Annotated[int, Field(ge=8)] = 128
    buckets: tuple[BucketConfig, ...] = ()
    shuffle: Size = 1000
    workers: Size = 2
    threads: Size = 1
    cache_mib: Annotated[int, Field(ge=0)] = 256

    @property
    def shapes(self) -> tuple[BucketConfig, ...]:
        """The shapes of batches."""
        return self.buckets or (BucketConfig(self.num_frames, self.crop, self.crop),)

    def micro_batch(self, ranks: int) -> int:
        """Clips per micro-batch of one process.

        Raises:
            UsageError: the batch is not divisible by the processes.
        """
        micro = self.micro_batch_size or self.batch_size // ranks
        if not micro or self.batch_size % (micro * ranks):
            each = f" x data.micro_batch_size={micro}" if self.micro_batch_size else ""
            raise UsageError(f"data.batch_size={self.batch_size} must be a multiple of {ranks} processes{each}")
        return micro

    def accumulation(self, ranks: int) -> int:
        """Micro-batches of each process per step."""
        return self.batch_size // (self.micro_batch(ranks) * ranks)
