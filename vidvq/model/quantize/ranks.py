"""What a codebook asks of the other processes of a training job, so that all of them have the same one.

Alone, and outside of a job, each function leaves its tensor as it is.
"""

from torch import Tensor, distributed


def add_up(tensor: Tensor) -> None:
    """Sum a tensor over all processes, in place."""
    if _together():
        distributed.all_reduce(tensor)


def same_everywhere(tensor: Tensor) -> None:
    """Give all processes the first one's tensor, in place."""
    if _together():
        distributed.broadcast(tensor, src=0)


def mean_of_all(mean: Tensor) -> Tensor:
    """The mean over all processes of each one's mean of as many latents, with a gradient to this one's.

    The gradient is that of a mean of this process alone: engines average gradients over the processes, which divides
    it by their number.
    """
    if not _together():
        return mean
    total = mean.detach().clone()
    distributed.all_reduce(total)
    return mean + (total / distributed.get_world_size() - mean.detach())


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
