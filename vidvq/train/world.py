"""The processes of a training job: joining them, what they say to each other, and what it means when one is gone."""

import os
import re
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

_LOOPBACK = "127.0.0.1"
# Gloo puts its source line before what happened, and advice behind it.
_GLOO = re.compile(r"\[\S*gloo\S*\] (?P<what>.*?)(\. |$)")


@dataclass(frozen=True)
class World:
    """This process among the processes of a training job."""

    rank: int
    size: int
    device: torch.device


def join_world(lost_after_s: float) -> World:
    """Join the job that torchrun or a scheduler started (RANK, WORLD_SIZE, MASTER_ADDR...), or be a job of one.

    Args:
        lost_after_s: a process for which the others wait so long is taken for lost.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind((_LOOPBACK, 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR=_LOOPBACK, MASTER_PORT=str(port))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=lost_after_s))
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return World(distributed.get_rank(), distributed.get_world_size(), device)


def leave_world() -> None:
    """Leave the job; every rank calls it at the end."""
    distributed.destroy_process_group()


def what_was_lost(error: RuntimeError) -> str | None:
    """What an exchange with the other processes failed of, in few words; None where the error is of another kind."""
    said = _GLOO.search(str(error))
    if said:
        return said["what"]
    return str(error).splitlines()[0] if isinstance(error, distributed.DistError) else None


def any_rank(flag: bool, world: World) -> bool:
    """Whether the flag is set on any rank; every rank calls it."""
    return bool(summed(torch.tensor(float(flag), device=world.device), world))


def summed(tensor: Tensor, world: World) -> Tensor:
    """Sum a tensor over all ranks, in place; every rank calls it."""
    if world.size > 1:
        distributed.all_reduce(tensor)
    return tensor


def wait_for_all(world: World) -> None:
    """Return when every rank has come here."""
    if world.size > 1:
        distributed.barrier()
