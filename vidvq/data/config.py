"""What a training run can be told of its data."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from vidvq.errors import UsageError

Size = Annotated[int, Field(ge=1)]


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class BucketConfig:
    """One shape of batch: frames, and height and width of the crop, pixels. One frame makes batches of images."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    num_frames: Size
    height: Size
    width: Size


@dataclass(frozen=True)
class DataConfig:
    """What a training run reads.

    Attributes:
        clips: directories or URLs that ``vidvq shard`` finished: one, a list, or a mapping of each to its weight.
            Without weights every clip is as likely.
        batch_size: clips per step, over all processes and accumulated passes: the same run on any number of them.
        micro_batch_size: clips per pass of one process; None passes its whole share at once.
        num_frames: frames per clip, from a random start; a clip that has fewer is extended by its last frame.
        crop: height and width of the random crop, pixels; a clip that is smaller is left out, with a warning.
        buckets: shapes of batches, instead of the one of ``num_frames`` and ``crop``. A clip belongs to the largest
            that it fills.
        shuffle: clips that are shuffled among themselves, beyond the shuffle of shards.
        workers: processes that decode, per training process.
        threads: of each of them; each decodes another clip.
        cache_mib: decoded clips that each of them keeps, MiB; small data sets are then decoded once.
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
        """Clips per pass of one process.

        Raises:
            ValueError: the batch cannot be shared evenly.
        """
        micro = self.micro_batch_size or self.batch_size // ranks
        if not micro or self.batch_size % (micro * ranks):
            each = f" x data.micro_batch_size={micro}" if self.micro_batch_size else ""
            raise UsageError(f"data.batch_size={self.batch_size} must be a multiple of {ranks} processes{each}")
        return micro

    def accumulation(self, ranks: int) -> int:
        """Passes of each process per step."""
        return self.batch_size // (self.micro_batch(ranks) * ranks)
