"""The processes of a training job: the process group, its collectives, and the loss of a peer."""

import os
import re
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

_LOOPBACK = "127.0.0.1"
# Gloo puts its source line before the cause, and advice behind it.
_GLOO = re.compile(r"\[\S*gloo\S*\] (?P<cause>.*?)(\. |$)")


@dataclass(frozen=True)
class DistributedContext:
    """This process in its training job: rank, number of processes, and device."""

    rank: int
    size: int
    device: torch.device


def init_distributed(timeout_s: float) -> DistributedContext:
    """Join the process group of torchrun or a scheduler (RANK, WORLD_SIZE, MASTER_ADDR...), or form one alone.

    Args:
        timeout_s: limit of a collective (seconds); a peer that takes longer counts as lost.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind((_LOOPBACK, 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR=_LOOPBACK, MASTER_PORT=str(port))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return DistributedContext(distributed.get_rank(), distributed.get_world_size(), device)


def shutdown_distributed() -> None:
    """Leave the process group; every rank calls it at the end."""
    distributed.destroy_process_group()


def lost_peer(error: RuntimeError) -> str | None:
    """The cause, in a few words, of a collective that failed because a peer is lost; None for any other error."""
    found = _GLOO.search(str(error))
    if found:
        return found["cause"]
    return str(error).splitlines()[0] if isinstance(error, distributed.DistError) else None


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place; every rank calls it."""
    if _has_peers():
        distributed.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all ranks, in their order; every rank calls it with the same shape."""
    if not _has_peers():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, tensor.contiguous())
    return gathered


def any_rank(flag: bool, context: DistributedContext) -> bool:
    """Whether the flag is set on any rank; every rank calls it."""
    return bool(all_reduce_sum(torch.tensor(float(flag), device=context.device)))


def barrier() -> None:
    """Wait for all ranks."""
    if _has_peers():
        distributed.barrier()


def _has_peers() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1
