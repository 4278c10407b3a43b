"""Random state of a training step, as a function of its position in the run."""

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
    text = f"{seed}/{step}/{batch}/{micro_batch}".encode()
    torch.manual_seed(int(sha256_bytes(text)[:15], 16))
