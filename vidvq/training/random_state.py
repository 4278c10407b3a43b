"""Random state of a training step, a function of its position in the run."""

import torch

from vidvq.storage import sha256_bytes


def seed_micro_batch(seed: int, step: int, batch: int, share: int) -> None:
    """Seed the random state of a micro-batch from its position in the run.

    Args:
        seed: seed of the run.
        step: step of the run.
        batch: number of the data batch.
        share: index of the micro-batch in the batch, over all ranks.
    """
    text = f"{seed}/{step}/{batch}/{share}".encode()
    torch.manual_seed(int(sha256_bytes(text)[:15], 16))
