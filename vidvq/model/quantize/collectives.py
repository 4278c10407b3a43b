"""Collective operations that keep codebooks identical on all ranks.

Without a ``torch.distributed`` process group of several ranks they leave their tensors unchanged.
"""

from torch import Tensor, distributed


def all_reduce_sum(tensor: Tensor) -> None:
    """Sum a tensor over all ranks, in place."""
    if _is_distributed():
        distributed.all_reduce(tensor)


def broadcast_from_first(tensor: Tensor) -> None:
    """Overwrite a tensor with the one of rank 0, in place."""
    if _is_distributed():
        # A sum, because torch.compile cannot trace a broadcast.
        if distributed.get_rank():
            tensor.zero_()
        distributed.all_reduce(tensor)


def all_reduce_mean(mean: Tensor) -> Tensor:
    """Average a tensor over all ranks, keeping the gradient to the local tensor.

    The gradient is not divided by the number of ranks, because the training engine averages gradients over ranks.

    Args:
        mean: local mean over the same number of latents on each rank.

    Returns:
        The global mean.
    """
    if not _is_distributed():
        return mean
    total = mean.detach().clone()
    distributed.all_reduce(total)
    return mean + (total / distributed.get_world_size() - mean.detach())


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
