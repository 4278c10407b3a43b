"""Random state of a training step and of its samples, as a function of their position in the run."""

from collections.abc import Iterator

import torch

from vidvq.storage import sha256_bytes


def seed_micro_batch(seed: int, step: int, batch: int, micro_batch: int) -> None:
    """Seed PyTorch's global random state for a micro-batch.

    Args:
        seed: seed of the run.
        step: step of the run.
        batch: number of the data batch.
        micro_batch: index of the micro-batch in the batch, over all ranks.
    """
    number = _hash(f"{seed}/{step}/{batch}/{micro_batch}")
    # Not torch.manual_seed, which formats a stack trace for each missing kind of device.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)


def sample_generators(seed: int, batch: int, first: int, count: int, device: torch.device) -> Iterator[torch.Generator]:
    """Yield a source of randomness for each sample of a micro-batch, independent of the number of processes.

    Generators are created lazily, because many steps use none.

    Args:
        seed: seed of the run.
        batch: number of the data batch.
        first: index of the first sample in the batch, over all ranks.
        count: number of samples.
        device: device of the samples.
    """
    for index in range(first, first + count):
        yield torch.Generator(device).manual_seed(_hash(f"{seed}/{batch}/sample {index}"))


def _hash(text: str) -> int:
    return int(sha256_bytes(text.encode())[:15], 16)
