"""Settings of the training data."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vidvq.errors import UsageError
from vidvq.settings import PathName

Size = Annotated[int, Field(ge=1)]


def one_or_many(value: Any) -> Any:
    """Wrap a single string in a tuple; a validator of settings."""
    return (value,) if isinstance(value, str) else value


def sampling_weights(folders: dict[str, float] | tuple[str, ...]) -> list[float] | None:
    """Return the weight of each directory of a setting; None without weights."""
    return list(folders.values()) if isinstance(folders, dict) else None


@dataclass(frozen=True)
class BucketConfig:
    """Shape of the clips of a batch.

    Attributes:
        num_frames: frames per clip (1 or more); 1 gives batches of images.
        height: height of the random crop (pixels).
        width: width of the random crop (pixels).
    """

    num_frames: Size
    height: Size
    width: Size


class Batching:
    """Division of batches among processes and micro-batches; base of the settings of datasets.

    Attributes:
        batch_size: samples per optimizer step, over all processes and micro-batches.
        micro_batch_size: samples per micro-batch of one process; None uses one micro-batch per step.
        workers: reading processes per training process.
    """

    batch_size: int
    micro_batch_size: int | None
    workers: int

    def micro_batch(self, ranks: int) -> int:
        """Return the number of samples per micro-batch of one process.

        Args:
            ranks: number of processes.

        Raises:
            UsageError: the batch size is not a multiple of the processes times the micro-batch size.
        """
        micro = self.micro_batch_size or self.batch_size // ranks
        if not micro or self.batch_size % (micro * ranks):
            each = f" x data.micro_batch_size={micro}" if self.micro_batch_size else ""
            processes = "1 process" if ranks == 1 else f"{ranks} processes"
            raise UsageError(f"data.batch_size={self.batch_size} must be a multiple of {processes}{each}")
        return micro

    def accumulation(self, ranks: int) -> int:
        """Return the number of gradient accumulation steps: micro-batches of one process per optimizer step."""
        return self.batch_size // (self.micro_batch(ranks) * ranks)


@dataclass(frozen=True)
class DataConfig(Batching):
    """Training clips and batching.

    Attributes:
        clips: directories or URLs written by ``vidvq shard``: one, a list, or a mapping of each to its sampling weight.
            Without weights all clips are equally likely.
        where: expression that selects the clips to train on, over the columns in ``CLIPS/columns/`` and the fields of
            the clips' JSON; None for all.
        batch_size: clips per optimizer step, over all processes and micro-batches (1 or more).
        micro_batch_size: clips per micro-batch of one process (1 or more); None uses one micro-batch per step.
        num_frames: frames per clip, from a random start (1 + a multiple of the temporal factor). Shorter clips are
            extended by repeating the last frame.
        crop: height and width of the random crop (pixels, 8 or more); smaller clips are skipped with a warning.
        scales: factors by which clips are reduced before cropping (above 0, up to 1). One is drawn per sample,
            and raised where the clip would become smaller than the crop.
        buckets: batch shapes that replace ``num_frames`` and ``crop``. Each clip is assigned to the largest bucket that
            it fills.
        shuffle: size of the shuffle window (clips); shards are shuffled first.
        workers: decoding processes per training process (1 or more).
        threads: decoding threads per worker (1 or more).
        cache_mib: size of the cache of decoded clips (MiB per machine; 0 or more), which the workers of all training
            processes of a machine share; small datasets are then decoded only once.
    """

    clips: Annotated[
        dict[PathName, Annotated[float, Field(gt=0)]] | tuple[PathName, ...],
        BeforeValidator(one_or_many),
        Field(min_length=1),
    ]
    where: str | None = None
    batch_size: Size = 8
    micro_batch_size: Size | None = None
    num_frames: Size = 17
    crop: Annotated[int, Field(ge=8)] = 128
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (1.0,)
    buckets: tuple[BucketConfig, ...] = ()
    shuffle: Size = 1000
    workers: Size = 2
    threads: Size = 1
    cache_mib: Annotated[int, Field(ge=0)] = 512

    @property
    def shapes(self) -> tuple[BucketConfig, ...]:
        """Batch shapes: the buckets, or the single shape of ``num_frames`` and ``crop``."""
        return self.buckets or (BucketConfig(self.num_frames, self.crop, self.crop),)


@dataclass(frozen=True)
class TokenDataConfig(Batching):
    """Training tokens and batching.

    Attributes:
        tokens: directories of token shards of one tokenizer, or ``megatron`` exports of them (``samples=true``): one, a
            list, or a mapping of each to its sampling weight. Without weights all samples are equally likely.
        batch_size: samples per optimizer step, over all processes and micro-batches (1 or more).
        micro_batch_size: samples per micro-batch of one process (1 or more); None uses one micro-batch per step.
        latents: maximum number of latent frames per sample (1 or more). A longer sample is cut to latent frame 0 and a
            random run of later ones. All samples of a batch have the same grid.
        shuffle: size of the shuffle window (samples); shards are shuffled first.
        workers: reading processes per training process (0 or more); 0 reads in the training process.
    """

    tokens: Annotated[
        dict[PathName, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | tuple[PathName, ...],
        BeforeValidator(one_or_many),
        Field(min_length=1),
    ]
    batch_size: Size = 16
    micro_batch_size: Size | None = None
    latents: Size = 5
    shuffle: Size = 10_000
    workers: Annotated[int, Field(ge=0)] = 1
