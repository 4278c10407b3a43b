"""Collective operations of a codebook over the processes of a training job, so that all hold the same one.

In a single process, without ``torch.distributed``, each leaves its tensor as it is.
"""

from torch import Tensor, distributed


def all_reduce_sum(tensor: Tensor) -> None:
    """Sum a tensor over all processes, in place."""
    if _is_distributed():
        distributed.all_reduce(tensor)


def broadcast_from_first(tensor: Tensor) -> None:
    """Overwrite a tensor with that of rank 0, in place."""
    if _is_distributed():
        distributed.broadcast(tensor, src=0)


def all_reduce_mean(mean: Tensor) -> Tensor:
    """The mean over all processes of their means of equally many latents, with a gradient to this process's mean.

    The gradient is that of a mean of this process alone: engines average gradients over the processes, which divides
    it by their number.
    """
    if not _is_distributed():
        return mean
    total = mean.detach().clone()
    distributed.all_reduce(total)
    return mean + (total / distributed.get_world_size() - mean.detach())


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
